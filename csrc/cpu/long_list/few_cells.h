// All pairs of different rank of a group of float32 rewards that has few ranks, and whose scores lie in few cells, such
// as positives and negatives: in linear time, in the items' own order. Compiled once per instruction set, so everything
// here has internal linkage.
//
// The items of one rank in one cell are a bucket. Buckets are so few that each meets each other: its items become
// moments, and get a polynomial of their places back.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "../group_visit.h"
#include "relation.h"

namespace prefloss::cpu {
namespace {

constexpr int kMostRanks = 16, kMostCells = 8;  // with more ranks, or more cells, other ways are as fast
constexpr int64_t kManyItems = 1024;            // in all groups of a call: with fewer, its matrices cost too much

// What the groups of a call have in common.
class CellsOfCall {
 public:
  double beta;
  CellGrid<float> grid;
  int most;  // so many cells, with which no |w| is beyond kNearby

  template <typename Real>
  explicit CellsOfCall(const PairOptions<Real>& options)
      : beta(static_cast<double>(options.formula.beta)), grid(beta), margin_(static_cast<double>(options.margin)) {
    const double furthest = (kNearby - std::abs(margin_)) / grid.width;
    most = static_cast<int>(std::clamp(std::floor(furthest) + 1, 0.0, static_cast<double>(kMostCells)));
  }
  CellsOfCall(const CellsOfCall&) = delete;
  CellsOfCall& operator=(const CellsOfCall&) = delete;
  ~CellsOfCall() { delete relation_.load(); }

  // Made when it is first asked for. Where several threads ask at once, one of theirs is kept.
  const Relation<float>& relation() const {
    const Relation<float>* kept = relation_.load();
    if (kept) return *kept;
    auto own = std::make_unique<Relation<float>>();
    own->margin = margin_;
    own->prepare({}, 1 - most, most - 1, grid.width, 1);
    if (relation_.compare_exchange_strong(kept, own.get())) return *own.release();
    return *kept;
  }

 private:
  double margin_;
  mutable std::atomic<const Relation<float>*> relation_{nullptr};
};

class FewCells {
 public:
  // False where there are too many ranks or cells, where a reward is not finite, or where it is quicker to visit pairs.
  bool load(const CellsOfCall& call, const float* rewards, const int32_t* levels, int size, const Ranks<int32_t>& ranks,
            bool curved) {
    if (size < kFewest) return false;
    call_ = &call;
    rewards_ = rewards;
    levels_ = levels;
    size_ = size;
    return set_cells() && set_ranks(ranks) && !pairs_are_quicker(curved);
  }

  // The sum of the pairs' terms, and how many pairs there are; the items' derivatives are written. With curvatures,
  // the terms are not computed.
  double run(double* slopes, double* curvatures, double& pairs, int threads) {
    start(nullptr, threads);
    const double terms = meet(moments_, potentials_, curvatures == nullptr, pairs);
    for_parts(threads, [&](int64_t part) {
      curvatures ? take<true>(part, slopes, curvatures) : take<false>(part, slopes, curvatures);
    });
    return terms;
  }

  // The product of the second derivatives by the items' rewards with a direction.
  void multiply(const float* direction, double* product, int threads) {
    double pairs = 0;
    start(direction, threads);
    meet(moments_, potentials_, false, pairs);
    meet(weighted_, bends_, false, pairs);
    for_parts(threads, [&](int64_t part) { take_products(part, direction, product); });
  }

 private:
  static constexpr int kCount = kPolynomials<float>, kAtOnce = 8;
  static constexpr int kFewest = 32;  // items
  static constexpr int kStreams = 4;
  static constexpr double kWeights[2 * kAtOnce] = {1, 1, 1, 1, 1, 1, 1, 1};  // of items; of what is behind them
  static constexpr int kPart = 8192;             // items whose places and results stay in the second-level cache
  static constexpr int kRoom = kPart + kAtOnce;  // what is read behind the last item counts nothing

  struct Coefficients {
    double of[kCount];

    void add(const Coefficients& other) {
      for (int k = 0; k < kCount; k++) of[k] += other.of[k];
    }
  };

  const CellsOfCall* call_ = nullptr;
  const float* rewards_ = nullptr;
  const int32_t* levels_ = nullptr;
  int size_ = 0, ranks_ = 0, cells_ = 0;
  double first_ = 0;            // the key of the lowest cell
  int32_t values_[kMostRanks];  // the ranks, ascending
  size_t room_ = 0;
  std::unique_ptr<double[]> places_;   // of each part's items by bucket, in their cells from -1 to 1
  std::unique_ptr<uint16_t[]> order_;  // those items, counted from the part's first one
  std::vector<int> begins_;            // of the buckets in each part, and where the last ends
  // The sums of T_k over the items of each part's buckets, and of T_k times the direction; then of all, in the place of
  // the first part's. And what a bucket's items get of them.
  std::vector<Coefficients> moments_, weighted_;
  Coefficients potentials_[kMostRanks * kMostCells], bends_[kMostRanks * kMostCells];

  // Nothing is written, so that each thread gets the memory that it is the first to write to.
  void make_room(size_t items) {
    if (items <= room_) return;
    room_ = items;
    places_.reset(new double[items]);
    order_.reset(new uint16_t[items]);
  }

  bool set_cells() {
    float low = rewards_[0], high = rewards_[0], not_finite = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : not_finite)
    for (int i = 0; i < size_; i++) {
      low = rewards_[i] < low ? rewards_[i] : low;
      high = rewards_[i] > high ? rewards_[i] : high;
      not_finite += rewards_[i] - rewards_[i];
    }
    if (not_finite != 0) return false;
    const double one = call_->grid.key(low), other = call_->grid.key(high), more = std::abs(one - other);
    first_ = std::min(one, other);
    if (!(more < call_->most)) return false;
    cells_ = static_cast<int>(more) + 1;
    return true;
  }

  // Where there are many, most often the first items have too many.
  bool set_ranks(const Ranks<int32_t>& ranks) {
    constexpr int kFirst = 64;
    return (size_ <= kFirst || set_ranks(ranks, kFirst)) && set_ranks(ranks, size_);
  }

  // Those of so many items, and the least and the greatest of all.
  bool set_ranks(const Ranks<int32_t>& ranks, int count) {
    values_[0] = ranks.least;
    for (ranks_ = 1; values_[ranks_ - 1] != ranks.most; ranks_++) {
      if (ranks_ == kMostRanks) return false;
      values_[ranks_] = ranks.are_two(size_) ? ranks.most : next_above(values_[ranks_ - 1], ranks.most, count);
    }
    return true;
  }

  int32_t next_above(int32_t level, int32_t most, int count) const {
    int32_t next = most;
#pragma omp simd reduction(min : next)
    for (int i = 0; i < count; i++) {
      const int32_t its = levels_[i] > level ? levels_[i] : most;
      next = its < next ? its : next;
    }
    return next;
  }

  // Measured on an AVX2 processor: in nanoseconds, of both.
  bool pairs_are_quicker(bool curved) const {
    const double pairs = 0.5 * size_ * size_ * (1 - 1.0 / ranks_), each = curved ? 1.1 : 0.8;
    return 300 + ranks_ * cells_ * (110 + 18 * cells_) > 12.0 * size_ + each * pairs;
  }

  template <typename Body>
  void for_parts(int threads, const Body& body) const {
    for_chunks((size_ + kPart - 1) / kPart, threads, body);
  }

  // The moments, and the weighted ones where there is a direction.
  void start(const float* direction, int threads) {
    const size_t parts = static_cast<size_t>((size_ + kPart - 1) / kPart),
                 buckets = static_cast<size_t>(ranks_ * cells_);
    make_room(parts * kRoom);
    begins_.resize(parts * (buckets + 1));
    moments_.assign(parts * buckets, {});
    weighted_.assign(direction ? parts * buckets : 0, {});
    for_parts(threads, [&](int64_t part) {
      put_in_buckets(part);
      set_moments<false>(part, nullptr, moments_);
      if (direction) set_moments<true>(part, direction, weighted_);
    });
    for (std::vector<Coefficients>* each : {&moments_, &weighted_}) {
      for (size_t n = buckets; n < each->size(); n++) (*each)[n % buckets].add((*each)[n]);
    }
  }

  size_t bucket(int rank, int cell) const { return static_cast<size_t>(rank * cells_ + cell); }

  // Sorts the items of a part by bucket.
  void put_in_buckets(int64_t part) {
    const int count = std::min(kPart, size_ - static_cast<int>(part) * kPart), all = ranks_ * cells_;
    const float* const rewards = rewards_ + part * kPart;
    const int32_t* const levels = levels_ + part * kPart;
    const CellGrid<float>& grid = call_->grid;
    uint8_t buckets[kPart];
    int* const begins = &begins_[static_cast<size_t>(part) * static_cast<size_t>(all + 1)];
    for (int from = 0; from < count; from += kBlock) {
      const int end = std::min(from + kBlock, count), cells = cells_;
      int32_t numbers[kBlock];
      for (int i = from; i < end; i++) numbers[i - from] = static_cast<int32_t>(grid.key(rewards[i]) - first_);
      for (int rank = 1; rank < ranks_; rank++) {
        const int32_t value = values_[rank];
        for (int i = from; i < end; i++) numbers[i - from] += levels[i] >= value ? cells : 0;
      }
      for (int i = from; i < end; i++) buckets[i] = static_cast<uint8_t>(numbers[i - from]);
    }
    // Each stream of items has counters of its own, or an item would wait for the one before.
    const int length = (count + kStreams - 1) / kStreams;
    int next[kStreams][kMostRanks * kMostCells];
    for (int* const its : next) std::fill_n(its, all, 0);
    for_streams(length, count, [&](int stream, int i) { next[stream][buckets[i]]++; });
    begins[0] = 0;
    for (int b = 0; b < all; b++) {
      int at = begins[b];
      for (int (&its)[kMostRanks* kMostCells] : next) {
        const int there = its[b];
        its[b] = at;
        at += there;
      }
      begins[b + 1] = at;
    }
    double* const places = &places_[static_cast<size_t>(part) * kRoom];
    uint16_t* const order = &order_[static_cast<size_t>(part) * kRoom];
    std::fill_n(places + count, kAtOnce, 0.0);
    double unsorted[kPart];
    const double inverse = 1 / grid.half();
    for (int i = 0; i < count; i++) unsorted[i] = inverse * grid.place(rewards[i], grid.key(rewards[i]));
    for_streams(length, count, [&](int stream, int i) {
      const int at = next[stream][buckets[i]]++;
      places[at] = unsorted[i];
      order[at] = static_cast<uint16_t>(i);
    });
  }

  // Calls body(stream, i) for all items, of which a stream has so many.
  template <typename Body>
  static void for_streams(int length, int count, const Body& body) {
    for (int i = 0; i < length; i++) {
      for (int stream = 0; stream < kStreams; stream++) {
        if (stream * length + i < count) body(stream, stream * length + i);
      }
    }
  }

  // Calls body(bucket, begin, end) for each bucket's items in a part, counted from its first one.
  template <typename Body>
  void for_buckets(int64_t part, const Body& body) const {
    const int buckets = ranks_ * cells_;
    const int* const begins = &begins_[static_cast<size_t>(part) * static_cast<size_t>(buckets + 1)];
    for (int b = 0; b < buckets; b++) {
      if (begins[b] < begins[b + 1]) body(static_cast<size_t>(b), begins[b], begins[b + 1]);
    }
  }

  // Of each item once, or times its entry of the direction.
  template <bool kDirected>
  void set_moments(int64_t part, const float* direction, std::vector<Coefficients>& moments) {
    const size_t from = static_cast<size_t>(part) * static_cast<size_t>(ranks_ * cells_);
    const double* const places = &places_[static_cast<size_t>(part) * kRoom];
    const uint16_t* const order = &order_[static_cast<size_t>(part) * kRoom];
    for_buckets(part, [&](size_t b, int begin, int end) {
      double sums[kCount][kAtOnce] = {};
      for (int first = begin; first < end; first += kAtOnce) {
        const int there = std::min(kAtOnce, end - first);
        if constexpr (kDirected) {
          double weights[kAtOnce] = {};
          for (int lane = 0; lane < there; lane++)
            weights[lane] = static_cast<double>(direction[part * kPart + order[first + lane]]);
          add_polynomials<kCount, kAtOnce>(places + first, weights, sums);
        } else {
          add_polynomials<kCount, kAtOnce>(places + first, kWeights + kAtOnce - there, sums);
        }
      }
      sum_lanes(sums, moments[from + b].of);
    });
  }

  // Each bucket with those of higher rank: from moments to potentials, and the sum of the terms where it is wanted.
  double meet(const std::vector<Coefficients>& moments, Coefficients* potentials, bool with_terms,
              double& pairs) const {
    const Relation<float>& relation = call_->relation();
    double terms = 0;
    pairs = 0;
    std::fill_n(potentials, ranks_ * cells_, Coefficients{});
    Coefficients others[kMostCells] = {};  // of each cell, and how many items these are
    double counts[kMostCells] = {};
    const auto count = [&](int rank, int cell) { return moments_[bucket(rank, cell)].of[0]; };
    const auto add_all = [&](int rank) {
      for (int c = 0; c < cells_; c++) {
        others[c].add(moments[bucket(rank, c)]);
        counts[c] += count(rank, c);
      }
    };
    for (int rank = 0; rank < ranks_; rank++) {  // with the better ones
      for (int worse = 0; worse < cells_ && rank > 0; worse++) {
        if (count(rank, worse) == 0) continue;
        for (int better = 0; better < cells_; better++) {
          if (counts[better] > 0)
            add_product(relation.matrix(worse - better).slope_turned, others[better].of,
                        potentials[bucket(rank, worse)].of);
        }
      }
      add_all(rank);
    }
    std::fill_n(others, kMostCells, Coefficients{});
    std::fill_n(counts, kMostCells, 0.0);
    for (int rank = ranks_; rank-- > 0;) {  // with the worse ones
      for (int better = 0; better < cells_ && rank + 1 < ranks_; better++) {
        if (count(rank, better) == 0) continue;
        const Coefficients& its = moments[bucket(rank, better)];
        double slopes[kCount] = {}, losses[kCount] = {};
        for (int worse = 0; worse < cells_; worse++) {
          if (counts[worse] == 0) continue;
          const CellPair<kCount>& pair = relation.matrix(worse - better);
          add_product(pair.slope, others[worse].of, slopes);
          if (with_terms) add_product(pair.loss, others[worse].of, losses);
          pairs += count(rank, better) * counts[worse];
        }
        for (int k = 0; k < kCount; k++) {
          potentials[bucket(rank, better)].of[k] -= slopes[k];
          terms += losses[k] * its.of[k];
        }
      }
      add_all(rank);
    }
    return terms;
  }

  // The items' derivatives by their rewards.
  template <bool kCurved>
  void take(int64_t part, double* slopes, double* curvatures) const {
    const double beta = call_->beta, curved = beta * beta / call_->grid.half();
    const double* const places = &places_[static_cast<size_t>(part) * kRoom];
    const uint16_t* const order = &order_[static_cast<size_t>(part) * kRoom];
    slopes += part * kPart;
    if (kCurved) curvatures += part * kPart;
    for_buckets(part, [&](size_t b, int begin, int end) {
      const Potential<kCount> potential(potentials_[b].of);
      for (int first = begin; first < end; first += kAtOnce) {
        double values[kAtOnce], derivatives[kAtOnce];
        potential.evaluate<kCurved>(places + first, values, derivatives);
        for (int lane = 0; lane < std::min(kAtOnce, end - first); lane++) {
          const uint16_t i = order[first + lane];
          slopes[i] = beta * values[lane];
          if (kCurved) curvatures[i] = curved * derivatives[lane];
        }
      }
    });
  }

  void take_products(int64_t part, const float* direction, double* product) const {
    const double bent = call_->beta * call_->beta / call_->grid.half();
    const double* const places = &places_[static_cast<size_t>(part) * kRoom];
    const uint16_t* const order = &order_[static_cast<size_t>(part) * kRoom];
    direction += part * kPart;
    product += part * kPart;
    for_buckets(part, [&](size_t b, int begin, int end) {
      const Potential<kCount> potential(potentials_[b].of), bend(bends_[b].of);
      for (int first = begin; first < end; first += kAtOnce) {
        double unused[kAtOnce], curvatures[kAtOnce], bends[kAtOnce];
        potential.evaluate<true>(places + first, unused, curvatures);
        bend.evaluate<true>(places + first, unused, bends);
        for (int lane = 0; lane < std::min(kAtOnce, end - first); lane++) {
          const uint16_t i = order[first + lane];
          product[i] = bent * (curvatures[lane] * static_cast<double>(direction[i]) - bends[lane]);
        }
      }
    });
  }
};

}  // namespace
}  // namespace prefloss::cpu
