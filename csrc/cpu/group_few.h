// A group of two ranks one of which has few items, such as one positive among many negatives: each of the few meets all
// others where they lie, without a sort. Compiled once per instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <vector>

#include "group_rows.h"

namespace prefloss::cpu {
namespace {

constexpr int kFew = 64;         // of a million items and 64 others, 64 million pairs cost what the tree of all does
constexpr int kFewChunk = 4096;  // others that a thread takes at a time; a multiple of kSegment

// In so small a group, or with so few items, nothing is won by a sort: it costs what four pairs an item cost.
template <typename Integer>
bool are_few(const Ranks<Integer>& ranks, int64_t size) {
  const int64_t few = ranks.fewer();
  return ranks.are_two(static_cast<int>(size)) && few <= kFew && few * few <= 4 * size;
}

// What the few items have with one chunk of the others.
struct FewSums {
  double terms = 0, slopes[kFew] = {};
};

// The sum of all pairs' terms; `slopes`, one an item, are written.
template <typename Real>
class FewItems {
  using Integer = IntegerLike<Real>;

 public:
  FewItems(const GroupOptions<Real>& options, const Real* rewards, const Integer* levels, int size,
           const Ranks<Integer>& ranks)
      : options_(options),
        rewards_(rewards),
        levels_(levels),
        size_(size),
        chosen_(ranks.at_least <= ranks.at_most),
        level_(chosen_ ? ranks.least : ranks.most) {
    for (int i = 0; count_ < ranks.fewer(); i++) {
      if (levels[i] == level_) places_[count_++] = i;
    }
  }

  double forward(double* slopes, int threads) const {
    const int64_t chunks = (size_ + kFewChunk - 1) / kFewChunk;
    FewSums total;
    if (chunks == 1) {
      visit_chunk(0, slopes, total);
    } else {
      std::vector<FewSums> sums(static_cast<size_t>(chunks));
      for_chunks(chunks, threads, [&](int64_t chunk) {
        visit_chunk(static_cast<int>(chunk), slopes, sums[static_cast<size_t>(chunk)]);
      });
      for (const FewSums& each : sums) {
        total.terms += each.terms;
        for (int n = 0; n < count_; n++) total.slopes[n] += each.slopes[n];
      }
    }
    for (int n = 0; n < count_; n++) slopes[places_[n]] = total.slopes[n];
    return total.terms;
  }

 private:
  const GroupOptions<Real>& options_;
  const Real* rewards_;
  const Integer* levels_;
  int size_;
  bool chosen_;  // whether the few are
  Integer level_;
  int count_ = 0, places_[kFew];

  void visit_chunk(int chunk, double* slopes, FewSums& sums) const {
    if (options_.plain)
      chosen_ ? visit_chunk<true, true>(chunk, slopes, sums) : visit_chunk<true, false>(chunk, slopes, sums);
    else
      chosen_ ? visit_chunk<false, true>(chunk, slopes, sums) : visit_chunk<false, false>(chunk, slopes, sums);
  }

  template <bool kPlain, bool kChosen>
  void visit_chunk(int chunk, double* slopes, FewSums& sums) const {
    const int begin = chunk * kFewChunk, end = std::min(size_, begin + kFewChunk);
    LaneSums lanes;
    std::fill(slopes + begin, slopes + end, 0.0);
    for (int top = 0; top < count_; top += kRows) {
      Rows<Real> rows;
      rows.count = std::min(kRows, count_ - top);
      for (int row = 0; row < rows.count; row++) rows.rewards[row] = rewards_[places_[top + row]];
      for (int first = begin; first < end; first += kTile) {
        const int there = std::min(kTile, end - first);
        TileSums<Real> tile;
        if (there == kTile) {
          add<kPlain, kChosen>(rows, rewards_ + first, levels_ + first, tile);
        } else {
          Real others[kTile] = {};
          Integer levels[kTile];
          std::copy_n(rewards_ + first, there, others);
          std::copy_n(levels_ + first, there, std::fill_n(levels, kTile, level_) - kTile);
          add<kPlain, kChosen>(rows, others, levels, tile);
        }
        for (int lane = 0; lane < there; lane++) slopes[first + lane] += static_cast<double>(tile.slope.of[lane]);
        lanes.add(tile);
        if (first + kTile < end && (first + kTile) % kSegment != 0) continue;
        for (int row = 0; row < rows.count; row++) rows.move_slope(row, sums.slopes[top + row]);
      }
    }
    sums.terms = lanes.total();
  }

  template <bool kPlain, bool kChosen>
  void add(Rows<Real>& rows, const Real* others, const Integer* levels, TileSums<Real>& tile) const {
    const Integer level = level_;
    add_tile<kPlain, kChosen>(options_.ranked, rows, others, tile,
                              [=](int, Integer lane) { return levels[lane] != level; });
  }
};

}  // namespace
}  // namespace prefloss::cpu
