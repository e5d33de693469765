// The pairs of one group, an item at a time. Compiled once per instruction set, so everything here has internal
// linkage.
//
// An item is paired with others a tile at a time: a fixed number of neighbours, over which the loops vectorise, and of
// which some count. Where the items are sorted by rank, those are the ones behind it. Slopes and sums are float64.
#pragma once

#include <algorithm>

#include "group_visit.h"

namespace prefloss::cpu {
namespace {

// The item i paired with the items [begin, end) behind it.
struct Range {
  int i, begin, end;
};

// Items that meet a tile.
template <typename Real>
struct Rows {
  int count = 0;
  Real rewards[kRows] = {}, slopes[kRows][kTile] = {};

  // Moves the slope of a row to `slope`.
  void move_slope(int row, double& slope) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int lane = 0; lane < kTile; lane++) total += static_cast<double>(slopes[row][lane]);
    std::fill(slopes[row], slopes[row] + kTile, Real(0));
    slope += total;
  }
};

// The pairs of rows and a tile for which counted(row, lane) holds. The rows are the chosen items, or the rejected.
template <bool kPlain, bool kRowsAreChosen, typename Real, typename Counted>
PREFLOSS_HOST_DEVICE void add_tile(const PairOptions<Real>& options, Rows<Real>& rows, const Real* others,
                                   TileSums<Real>& sums, const Counted& counted) {
  const Formula<Real> formula = options.formula;
  const Real margin = options.margin, right = options.right, wrong = options.wrong;
  for (int row = 0; row < rows.count; row++) {
    const Real its = rows.rewards[row];
    Real* __restrict slopes = rows.slopes[row];
    Real* __restrict slope = sums.slope.of;
    Real* __restrict product = sums.product.of;
    Real* __restrict hinge = sums.hinge.of;
#pragma omp simd
    for (int lane = 0; lane < kTile; lane++) {
      LossProduct<Real> loss{product[lane], hinge[lane]};
      const PairSlopes<Real> pair = visit<kPlain>(formula, kRowsAreChosen ? its - others[lane] : others[lane] - its,
                                                  its + others[lane], counted(row, lane), margin, right, wrong, loss);
      const Real difference = kRowsAreChosen ? pair.difference : -pair.difference;
      product[lane] = loss.u;
      hinge[lane] = loss.hinge;
      slopes[lane] += kPlain ? difference : pair.sum + difference;
      slope[lane] += kPlain ? -difference : pair.sum - difference;
    }
  }
}

// All pairs of kRows items from `top` on with those of higher rank.
template <bool kPlain, typename Real>
void add_ranked_rows(RankedItems<Real>& items, const PairOptions<Real>& options, int top, LaneSums& sums) {
  using Integer = IntegerLike<Real>;
  static_assert(kRows <= LossProduct<Real>::kMost && kSegment % kTile == 0);
  const Integer end = static_cast<Integer>(items.size);
  Rows<Real> rows;
  Integer begin[kRows] = {};  // of the items that each row meets
  rows.count = std::min(kRows, items.size - top);
  for (int row = 0; row < rows.count; row++) {
    rows.rewards[row] = items.rewards[static_cast<size_t>(top + row)];
    begin[row] = static_cast<Integer>(items.level_end[static_cast<size_t>(top + row)]);
  }
  const Integer all_from = begin[rows.count - 1];  // the latest
  for (Integer first = begin[0] / kTile * kTile; first < end; first += kTile) {
    const Real* others = &items.rewards[static_cast<size_t>(first)];
    TileSums<Real> tile;
    if (first >= all_from && first + kTile <= end)
      add_tile<kPlain, true>(options, rows, others, tile, [](int, Integer) { return true; });
    else
      add_tile<kPlain, true>(options, rows, others, tile, [&](int row, Integer lane) {
        return (first + lane >= begin[row]) & (first + lane < end);
      });
    double* __restrict slopes = &items.slopes[static_cast<size_t>(first)];
    for (int lane = 0; lane < kTile; lane++) slopes[lane] += static_cast<double>(tile.slope.of[lane]);
    sums.add(tile);
    if (first + kTile < end && (first + kTile) % kSegment != 0) continue;
    for (int row = 0; row < rows.count; row++) rows.move_slope(row, items.slopes[static_cast<size_t>(top + row)]);
  }
}

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
      const PairGradient<Real> gradient = formula.gradient(a, b, margin, counted, target, Scale<Real>());
      terms[lane] += counted != 0 ? static_cast<double>(term) : 0.0;
      slope[lane] += static_cast<double>(gradient.chosen);
      slopes[lane] += static_cast<double>(gradient.rejected);
    }
  }
  double total = 0;
  for (const double lane : slope) total += lane;
  items.slopes[static_cast<size_t>(range.i)] += total;
}

// So many numbers' sum, and the squares of what they differ from their mean by.
struct Moments {
  double count = 0, sum = 0, squares = 0;

  // Of as many times the same number.
  static Moments of_one(double times, double number) { return {times, times * number, number - number}; }

  void add(const Moments& other) {
    squares += other.squares + CommonMean(count, other.count).squares(sum, other.sum);
    count += other.count;
    sum += other.sum;
  }
};

template <typename Entry>
double total(int begin, int end, const Entry& entry) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int j = begin; j < end; j++) sum += entry(j);
  return sum;
}

// The moments of entry(begin ... end - 1).
template <typename Entry>
Moments moments(int begin, int end, const Entry& entry) {
  const double count = end - begin, sum = total(begin, end, entry), mean = sum / count;
  return {count, sum, total(begin, end, [=](int j) { return (entry(j) - mean) * (entry(j) - mean); })};
}

// The sum of the losses of a range; each is added to those of its two items, where they are wanted.
template <typename Real>
double losses_of(RankedItems<Real>& items, const Range& range, const PairOptions<Real>& options) {
  const Real a = items.rewards[static_cast<size_t>(range.i)];
  const Real* others = items.rewards.data();
  Buffer<double> losses;
  double all = 0;
  for (int begin = range.begin; begin < range.end; begin += kBlock) {
    const int count = std::min(kBlock, range.end - begin);
    for (int j = 0; j < count; j++)
      losses.values[j] = options.formula.exact_loss(a, others[begin + j], options.margin, options.target);
    all += total(0, count, [&](int j) { return losses.values[j]; });
    if (items.losses.empty()) continue;
    for (int j = 0; j < count; j++) items.losses[static_cast<size_t>(begin + j)] += losses.values[j];
  }
  if (!items.losses.empty()) items.losses[static_cast<size_t>(range.i)] += all;
  return all;
}

// What PairStats wants to know of a range's pairs. Those of equal rank count half in each order.
template <typename Real>
void add_statistics(RankedItems<Real>& items, const Range& range, const PairOptions<Real>& options, bool ties,
                    double* sums) {
  const Real a = items.rewards[static_cast<size_t>(range.i)];
  const Real* others = items.rewards.data();
  double above = 0, below = 0, equal = 0;
#pragma omp simd reduction(+ : above, below, equal)
  for (int j = range.begin; j < range.end; j++) {
    above += a > others[j] ? 1.0 : 0.0;
    below += a < others[j] ? 1.0 : 0.0;
    equal += a == others[j] ? 1.0 : 0.0;
  }
  const auto reward = [=](int j) { return static_cast<double>(others[j]); };
  const auto difference = [=](int j) { return static_cast<double>(a - others[j]); };
  const double count = range.end - range.begin;
  const double losses = losses_of(items, range, options);
  const Moments differences =
      ties ? Moments{count, total(range.begin, range.end, [=](int j) { return difference(j) - difference(j); }),
                     total(range.begin, range.end, [=](int j) { return difference(j) * difference(j); })}
           : moments(range.begin, range.end, difference);  // the differences of both orders have the mean 0, or NaN
  Moments chosen = Moments::of_one(count, static_cast<double>(a)), rejected = moments(range.begin, range.end, reward);
  if (ties) {
    chosen.add(rejected);
    chosen.count /= 2, chosen.sum /= 2, chosen.squares /= 2;
    rejected = chosen;
  }
  const double range_sums[kGroupSums] = {count,
                                         0,
                                         losses,
                                         ties ? 0.5 * (above + below) : above,
                                         equal,
                                         differences.sum,
                                         differences.squares,
                                         chosen.sum,
                                         chosen.squares,
                                         rejected.sum,
                                         rejected.squares,
                                         HUGE_VAL,
                                         -HUGE_VAL};
  add_group_sums<true>(sums, range_sums);
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

// Calls body(range, options, whether of equal rank) for the ranges of a group.
template <typename Real, typename Body>
void for_ranges(const RankedItems<Real>& items, const GroupOptions<Real>& options, const Body& body) {
  for (int i = 0; i < items.size; i++) {
    const int end = items.level_end[static_cast<size_t>(i)];
    if (end < items.size) body(Range{i, end, items.size}, options.ranked, false);
    if (options.half_ties && i + 1 < end) body(Range{i, i + 1, end}, options.tied, true);
  }
}

// The derivatives by the rewards of the product of a group's unscaled slopes with `direction`, in the items' order.
template <typename Real>
void bend(RankedItems<Real>& items, const GroupOptions<Real>& options, const Real* direction) {
  std::vector<Real> directions(items.order.size());
  for (size_t i = 0; i < directions.size(); i++) directions[i] = direction[items.order[i]];
  for_ranges(items, options, [&](const Range& range, const PairOptions<Real>& pairs, bool) {
    const size_t i = static_cast<size_t>(range.i);
    const Real a = items.rewards[i], v = directions[i];
    const Real *others = items.rewards.data(), *towards = directions.data();
    double* slopes = items.slopes.data();
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int j = range.begin; j < range.end; j++) {
      const PairGradient<Real> second = pairs.formula
                                            .second(a, others[j], pairs.margin, Real(1), pairs.target, Scale<Real>(),
                                                    Scale<Real>(), v, towards[j], Real(0))
                                            .gradient;
      total += static_cast<double>(second.chosen);
      slopes[j] += static_cast<double>(second.rejected);
    }
    slopes[i] += total;
  });
}

// The first and the second derivatives of each item's sum: without the loss, whose logarithms cost as much as both.
template <typename Real>
void add_derivatives(RankedItems<Real>& items, const GroupOptions<Real>& options) {
  for_ranges(items, options, [&](const Range& range, const PairOptions<Real>& pairs, bool) {
    const Formula<Real> formula = pairs.formula;
    const Target<Real> target{pairs.right, pairs.wrong};
    const Real a = items.rewards[static_cast<size_t>(range.i)], margin = pairs.margin, *others = items.rewards.data();
    double *slopes = items.slopes.data(), *curvatures = items.curvatures.data(), slope = 0, curvature = 0;
#pragma omp simd reduction(+ : slope, curvature)
    for (int j = range.begin; j < range.end; j++) {
      const PairDerivatives<Real> pair = pair_derivatives(formula.logit(a, others[j], margin), target);
      const PairGradient<Real> gradient = formula.gradient(pair.slope, a, others[j], Real(1), Scale<Real>());
      const double bend = formula.curvature(pair.curvature);
      slope += static_cast<double>(gradient.chosen);
      slopes[j] += static_cast<double>(gradient.rejected);
      curvature += bend;
      curvatures[j] += bend;
    }
    slopes[range.i] += slope;
    curvatures[range.i] += curvature;
  });
}

// The first derivatives, and the sum of the terms.
template <typename Real>
double add_slopes(RankedItems<Real>& items, const GroupOptions<Real>& options) {
  LaneSums lanes, row;
  for (int top = 0; top < items.size; top += kRows) {
    if (options.plain)
      add_ranked_rows<true>(items, options.ranked, top, lanes);
    else
      add_ranked_rows<false>(items, options.ranked, top, lanes);
  }
  for_ranges(items, options, [&](const Range& range, const PairOptions<Real>& pairs, bool ties) {
    if (!ties) return;
    add_row(items, range, pairs, row);
    row.move_to(lanes);  // two short sums round less than a long one
  });
  return lanes.total();
}

// How many pairs there are, and what PairStats wants to know of them.
template <typename Real>
void add_sums(RankedItems<Real>& items, const GroupOptions<Real>& options, bool statistics, double* sums) {
  std::fill(sums, sums + kGroupSums, 0.0);
  for_ranges(items, options, [&](const Range& range, const PairOptions<Real>& pairs, bool ties) {
    if (statistics)
      add_statistics(items, range, pairs, ties, sums);
    else
      sums[kPairs] += range.end - range.begin;
  });
  if (statistics) add_extremes(items, sums);
}

}  // namespace
}  // namespace prefloss::cpu
