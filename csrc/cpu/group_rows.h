// The pairs of one group, an item at a time. Compiled once per instruction set, so everything here has internal
// linkage.
//
// The items are sorted by rank; an item is then paired with a range of those behind it, which is worked through a tile
// at a time: a fixed number of neighbours, over which the loops vectorise, and of which those in the range count.
// Slopes and sums are float64.
#pragma once

#include <algorithm>

#include "ranked_lanes.h"

namespace prefloss::cpu {
namespace {

// The item i paired with the items [begin, end) behind it.
struct Range {
  int i, begin, end;
};

// What a group's pairs add up to, a lane at a time.
struct LaneSums {
  double terms[kTile] = {}, product[kTile] = {};
  int products = 0;

  void move_to(LaneSums& others) {
    for (int lane = 0; lane < kTile; lane++) {
      others.terms[lane] += terms[lane];
      terms[lane] = 0;
    }
  }

  // A product of so many pairs' losses has a limit.
  void flush() {
    for (int lane = 0; lane < kTile; lane++) {
      terms[lane] += log1p_positive(product[lane]);
      product[lane] = 0;
    }
    products = 0;
  }
};

// Items that meet a tile.
template <typename Real>
struct Rows {
  int count = 0;
  Real rewards[kRows] = {}, slopes[kRows][kTile] = {};
  IntegerLike<Real> begin[kRows] = {};  // of each item's range
};

// The default options: one exponential for loss and slope. Outside of its range an item's z is infinity, loss and slope
// 0.
template <bool kAll, typename Real>
void add_plain_tile(Rows<Real>& rows, const Real* others, IntegerLike<Real> first, IntegerLike<Real> end,
                    TileSums<Real>& sums) {
  using Integer = IntegerLike<Real>;
  for (int row = 0; row < rows.count; row++) {
    const Real a = rows.rewards[row];
    const Integer begin = rows.begin[row];
    Real* __restrict slopes = rows.slopes[row];
    Real* __restrict slope = sums.slope.of;
    Real* __restrict product = sums.product.of;
    Real* __restrict hinge = sums.hinge.of;
#pragma omp simd
    for (Integer lane = 0; lane < kTile; lane++) {
      const Integer j = first + lane;
      LossProduct<Real> loss{product[lane], hinge[lane]};
      const Real s =
          loss.add_for_slope(kAll ? a - others[lane] : or_infinity((j >= begin) & (j < end), a - others[lane]));
      product[lane] = loss.u;
      hinge[lane] = loss.hinge;
      slopes[lane] += s;
      slope[lane] -= s;
    }
  }
}

// All pairs of kRows items from `top` on with those behind them.
template <typename Real>
void add_plain_rows(RankedItems<Real>& items, int top, LaneSums& sums) {
  using Integer = IntegerLike<Real>;
  static_assert(kRows <= LossProduct<Real>::kMost && kSegment % kTile == 0);
  const Integer end = static_cast<Integer>(items.size);
  Rows<Real> rows;
  rows.count = std::min(kRows, items.size - top);
  for (int row = 0; row < rows.count; row++) {
    rows.rewards[row] = items.rewards[static_cast<size_t>(top + row)];
    rows.begin[row] = static_cast<Integer>(items.level_end[static_cast<size_t>(top + row)]);
  }
  const Integer all_from = rows.begin[rows.count - 1];  // the latest
  for (Integer first = rows.begin[0] / kTile * kTile; first < end; first += kTile) {
    if (sums.products + kRows > PairLossSum::kMost) sums.flush();
    sums.products += kRows;
    const Real* others = &items.rewards[static_cast<size_t>(first)];
    TileSums<Real> tile;
    if (first >= all_from && first + kTile <= end)
      add_plain_tile<true>(rows, others, first, end, tile);
    else
      add_plain_tile<false>(rows, others, first, end, tile);
    double* __restrict slopes = &items.slopes[static_cast<size_t>(first)];
    for (int lane = 0; lane < kTile; lane++) {
      const double u = static_cast<double>(tile.product.of[lane]);
      slopes[lane] += static_cast<double>(tile.slope.of[lane]);
      sums.product[lane] += fused(sums.product[lane], u, u);
      sums.terms[lane] += static_cast<double>(tile.hinge.of[lane]);
    }
    if (first + kTile < end && (first + kTile) % kSegment != 0) continue;
    for (int row = 0; row < rows.count; row++) {
      Real* its = rows.slopes[row];
      double total = 0;
#pragma omp simd reduction(+ : total)
      for (int lane = 0; lane < kTile; lane++) total += static_cast<double>(its[lane]);
      std::fill(its, its + kTile, Real(0));
      items.slopes[static_cast<size_t>(top + row)] += total;
    }
  }
}

// What a range's pairs have in common.
template <typename Real>
struct PairOptions {
  Formula<Real> formula;
  Real margin, target;
};

template <typename Real>
void add_row(RankedItems<Real>& items, const Range& range, const PairOptions<Real>& options, LaneSums& sums) {
  using Integer = IntegerLike<Real>;
  const Integer begin = static_cast<Integer>(range.begin), end = static_cast<Integer>(range.end);
  const Formula<Real> formula = options.formula;
  const Real a = items.rewards[static_cast<size_t>(range.i)], margin = options.margin, target = options.target;
  double slope[kTile] = {};
  for (Integer first = begin / kTile * kTile; first < end; first += kTile) {
    const Real* __restrict others = &items.rewards[static_cast<size_t>(first)];
    double* __restrict slopes = &items.slopes[static_cast<size_t>(first)];
    double* __restrict terms = sums.terms;
#pragma omp simd
    for (Integer lane = 0; lane < kTile; lane++) {
      const Integer j = first + lane;
      const Real counted = (j >= begin) & (j < end) ? Real(1) : Real(0), b = others[lane];
      const Real term = formula.centered(formula.loss(a, b, margin, target), a, b);
      const PairGradient<Real> gradient = formula.gradient(a, b, margin, counted, target, Real(1));
      terms[lane] += counted != 0 ? static_cast<double>(term) : 0.0;
      slope[lane] += static_cast<double>(gradient.chosen);
      slopes[lane] += static_cast<double>(gradient.rejected);
    }
  }
  double total = 0;
  for (const double lane : slope) total += lane;
  items.slopes[static_cast<size_t>(range.i)] += total;
}

// The sums of a range's losses and of their squares.
template <typename Real>
void add_losses(const RankedItems<Real>& items, const Range& range, const PairOptions<Real>& options, double& losses,
                double& squares) {
  const Real a = items.rewards[static_cast<size_t>(range.i)];
  const Real* others = items.rewards.data();
  double l1 = 0, l2 = 0;
#pragma omp simd reduction(+ : l1, l2)
  for (int j = range.begin; j < range.end; j++) {
    const double loss = static_cast<double>(options.formula.loss(a, others[j], options.margin, options.target));
    l1 += loss;
    l2 += loss * loss;
  }
  losses += l1;
  squares += l2;
}

// What PairStats wants to know of a range's pairs. Those of equal rank count half in each order.
template <typename Real>
void add_statistics(const RankedItems<Real>& items, const Range& range, const PairOptions<Real>& options, bool ties,
                    double* sums) {
  add_losses(items, range, options, sums[kPairLoss], sums[kPairLossSquared]);
  const Real a = items.rewards[static_cast<size_t>(range.i)];
  const Real* others = items.rewards.data();
  double above = 0, below = 0, d1 = 0, d2 = 0, b1 = 0, b2 = 0;
#pragma omp simd reduction(+ : above, below, d1, d2, b1, b2)
  for (int j = range.begin; j < range.end; j++) {
    const Real b = others[j];
    const double d = static_cast<double>(a - b), y = static_cast<double>(b);
    above += a > b ? 1.0 : 0.0;
    below += a < b ? 1.0 : 0.0;
    d1 += d;
    d2 += d * d;
    b1 += y;
    b2 += y * y;
  }
  double equal = 0;
  for (int j = range.begin; j < range.end; j++) equal += a == others[j] ? 1.0 : 0.0;
  const double x = static_cast<double>(a), count = range.end - range.begin, a1 = count * x, a2 = count * (x * x);
  sums[kPairsCorrect] += ties ? 0.5 * (above + below) : above;
  sums[kPairsTied] += equal;
  sums[kPairDifference] += ties ? 0.0 : d1;
  sums[kPairDifferenceSquared] += d2;
  sums[kPairChosen] += ties ? 0.5 * (a1 + b1) : a1;
  sums[kPairChosenSquared] += ties ? 0.5 * (a2 + b2) : a2;
  sums[kPairRejected] += ties ? 0.5 * (a1 + b1) : b1;
  sums[kPairRejectedSquared] += ties ? 0.5 * (a2 + b2) : b2;
}

// Where there is a pair, every item is in one.
template <typename Real>
void add_extremes(const RankedItems<Real>& items, double* sums) {
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (size_t i = 0; sums[kPairs] > 0 && i < items.order.size(); i++) {
    const double reward = static_cast<double>(items.rewards[i]);
    // The comparisons are false for NaN: a NaN that is here stays, one that comes is taken.
    if (!(reward >= low) && low == low) low = reward;
    if (!(reward <= high) && high == high) high = reward;
  }
  sums[kPairMinimum] = low;
  sums[kPairMaximum] = high;
}

// What the pairs of different rank have in common, and those of equal rank.
template <typename Real>
struct GroupOptions {
  PairOptions<Real> ranked, tied;
  bool plain, half_ties;
  int64_t large;

  explicit GroupOptions(const Groups& groups)
      : ranked{Formula<Real>(groups.options), static_cast<Real>(groups.options.margin),
               static_cast<Real>(groups.options.target)},
        tied{Formula<Real>(groups.options), Real(0), Real(0.5)},
        plain(Pairs{{}, {}, {}, {}, {}, 1, 0, groups.options}.plain()),
        half_ties(groups.half_ties),
        large(groups.large) {}
};

// Calls body(range, options, whether of equal rank) for the ranges of a group.
template <typename Real, typename Body>
void for_ranges(const RankedItems<Real>& items, const GroupOptions<Real>& options, const Body& body) {
  for (int i = 0; i < items.size; i++) {
    const int end = items.level_end[static_cast<size_t>(i)];
    if (end < items.size) body(Range{i, end, items.size}, options.ranked, false);
    if (options.half_ties && i + 1 < end) body(Range{i, i + 1, end}, options.tied, true);
  }
}

template <typename Real>
void forward_group(RankedItems<Real>& items, const GroupOptions<Real>& options, bool statistics, double* sums) {
  LaneSums lanes, row;
  std::fill(sums, sums + kGroupSums, 0.0);
  if (options.plain) {
    for (int top = 0; top < items.size; top += kRows) add_plain_rows(items, top, lanes);
  }
  for_ranges(items, options, [&](const Range& range, const PairOptions<Real>& pairs, bool ties) {
    sums[kPairs] += range.end - range.begin;
    if (!options.plain || ties) {
      add_row(items, range, pairs, row);
      row.move_to(lanes);  // two short sums round less than a long one
    }
    if (statistics) add_statistics(items, range, pairs, ties, sums);
  });
  lanes.flush();
  for (const double lane : lanes.terms) sums[kTerms] += lane;
  if (statistics) add_extremes(items, sums);
}

}  // namespace
}  // namespace prefloss::cpu
