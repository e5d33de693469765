// All pairs of a few items that are next to each other in the order of the ranks, visited one by one. Compiled once per
// instruction set, so everything here has internal linkage.
#pragma once

#include <cmath>

#include "cells.h"
#include "direct_pairs.h"

namespace prefloss::cpu {
namespace {

// A leaf of a tree has no more items than this, by how its pairs' exp(-|w|) come about.
constexpr int kLeafOfProducts = 128, kLeafOfSmallerProducts = 256, kLeafOfExponentials = 64;

// A group that is one leaf has no more than this: up to here a tree of several takes longer.
constexpr int kLargestLeaf = 512;

// How items of one leaf are compared: pairs of different rank with a margin; those of equal rank, where they count,
// without.
struct LeafOptions {
  double beta = 1, margin = 0;
  bool half_ties = false;
};

class Leaf {
 public:
  // The items [begin, end) of a list.
  template <typename Real>
  void load(const RankedItems<Real>& items, const ItemCells<Real>& cells, const LeafOptions& options, int begin,
            int end) {
    make_room(begin, end, options);
    const double origin = cells.key(begin);
    for (int i = 0; i < size_; i++) {
      up_[i] = cells.score(begin + i, origin);
      rewards_[i] = static_cast<double>(items.rewards[static_cast<size_t>(begin + i)]);
      level_end_[i] = std::min(items.level_end[static_cast<size_t>(begin + i)], end) - begin;
    }
    const auto [low, high] = std::minmax_element(up_, up_ + size_);
    const double greatest = *high - *low + std::abs(options.margin);
    set_way(way_of<Real>(greatest), greatest, *low + (*high - *low) / 2);
  }

  // A whole group. False where its pairs would take an exponential each.
  bool load(const RankedItems<float>& items, const LeafOptions& options) {
    make_room(0, items.size, options);
    double low = HUGE_VAL, high = -HUGE_VAL, not_finite = 0;
    for (int i = 0; i < size_; i++) {
      rewards_[i] = static_cast<double>(items.rewards[static_cast<size_t>(i)]);
      low = std::min(low, rewards_[i]);
      high = std::max(high, rewards_[i]);
      not_finite += rewards_[i] - rewards_[i];
      level_end_[i] = items.level_end[static_cast<size_t>(i)];
    }
    const double middle = low + (high - low) / 2,
                 greatest = std::abs(options.beta) * (high - low) + std::abs(options.margin);
    if (not_finite != 0 || way_of<float>(greatest) == Way::kExponential) return false;
    for (int i = 0; i < size_; i++) up_[i] = options.beta * (rewards_[i] - middle);
    set_way(way_of<float>(greatest), greatest, 0);
    return true;
  }

  // Adds to the items' sums, and returns that of the losses.
  double run(const ItemSums& sums) {
    for (int i = 0; i < size_ && sums.directions; i++) directions_[i] = sums.directions[begin_ + i];
    const double losses = with_wanted(sums.wanted(), [&](auto wanted) { return run<wanted>(); });
    const auto add = [&](const double* its, double* all) {
      for (int i = 0; i < size_ && all; i++) all[begin_ + i] += its[i];
    };
    add(slopes_, sums.slopes);
    add(curvatures_, sums.curvatures);
    add(bends_, sums.bends);
    return losses;
  }

 private:
  static constexpr int kRoom = kLargestLeaf + kLanes;
  int begin_ = 0, size_ = 0;
  LeafOptions options_;
  Way way_ = Way::kExponential;
  double greatest_ = 0;  // no |w| is greater
  alignas(64) double up_[kRoom], down_[kRoom], rewards_[kRoom], directions_[kRoom];
  alignas(64) double slopes_[kRoom], curvatures_[kRoom], bends_[kRoom];
  int64_t level_end_[kLargestLeaf];

  void make_room(int begin, int end, const LeafOptions& options) {
    begin_ = begin;
    size_ = end - begin;
    options_ = options;
    for (double* each : {up_, down_, rewards_, directions_, slopes_, curvatures_, bends_})
      std::fill_n(each, size_ + kLanes, 0.0);
  }

  // How pairs are compared, none of whose |w| is greater than this; `middle`: of the scores, which are in `up_`.
  void set_way(Way way, double greatest, double middle) {
    way_ = way;
    greatest_ = greatest;
    for (int i = 0; i < size_ && way != Way::kExponential; i++) {
      const BothWays its = BothWays::of(up_[i] - middle);
      up_[i] = its.up;
      down_[i] = its.down;
    }
  }

  template <Wanted kWanted>
  double run() {
    return way_ == Way::kProduct          ? run<kWanted, Way::kProduct>()
           : way_ == Way::kSmallerProduct ? run<kWanted, Way::kSmallerProduct>()
                                          : run<kWanted, Way::kExponential>();
  }

  template <Wanted kWanted, Way kWay>
  double run() {
    DirectLosses losses(kWay == Way::kProduct ? greatest_ : 0);  // else exp(-|w|), at most 1
    const Logit logit{options_.beta, options_.margin, std::exp(options_.margin), std::exp(-options_.margin)};
    const int64_t end = size_;
    for (int top = 0; top < size_; top += kDirectRows) {
      DirectRows<kWanted> rows(std::min(kDirectRows, size_ - top));
      int64_t begin[kDirectRows] = {}, ranked_from[kDirectRows] = {};
      for (int row = 0; row < rows.count; row++) {
        rows.up[row] = up_[top + row];
        rows.down[row] = down_[top + row];
        rows.rewards[row] = rewards_[top + row];
        rows.directions[row] = directions_[top + row];
        ranked_from[row] = level_end_[top + row];
        begin[row] = options_.half_ties ? top + row + 1 : ranked_from[row];
      }
      const int64_t all_from = ranked_from[rows.count - 1];
      for (int64_t first = begin[0] / kLanes * kLanes; first < end; first += kLanes) {
        const DirectItems others{up_ + first,     down_ + first,       rewards_ + first, directions_ + first,
                                 slopes_ + first, curvatures_ + first, bends_ + first};
        if (rows.count == kDirectRows && first >= all_from && first + kLanes <= end)
          add_all<kWay>(rows, others, losses, logit);
        else
          add_some<kWay>(
              rows, others, losses, logit,
              [&](int row, int64_t lane) { return (first + lane >= begin[row]) & (first + lane < end); },
              [&](int row, int64_t lane) { return first + lane >= ranked_from[row]; });
      }
      for (int row = 0; row < rows.count; row++) {
        slopes_[top + row] -= sum_of_lanes(rows.slopes[row]);
        if (kWanted != Wanted::kSlopes) curvatures_[top + row] += sum_of_lanes(rows.curvatures[row]);
        if (kWanted == Wanted::kBends) bends_[top + row] += sum_of_lanes(rows.bends[row]);
      }
    }
    return losses.total();
  }
};

}  // namespace
}  // namespace prefloss::cpu
