// Groups of items, all pairs of different rank compared: what crosses the seam between Python and the kernels.
#pragma once

#include "pairs.h"

namespace prefloss {

// `ranks` are contiguous, int64 (`integers`) or float64; lower is preferred. Group g has the items offsets[g] ...
// offsets[g + 1] - 1, or, where there are no offsets, `size` items from g * size on.
struct Groups {
  Column rewards;
  const void* ranks = nullptr;
  bool integers = true;
  int64_t rows = 1, groups = 0, size = 0;  // so many groups a row, of `size` items each
  const int64_t* offsets = nullptr;
  Options options;         // target: of pairs of different rank
  bool half_ties = false;  // pairs of equal rank count too, with target 1/2 and no margin

  int64_t count() const { return rows * groups; }
  int64_t begin(int64_t group) const { return offsets ? offsets[group] : group * size; }
  int64_t size_of(int64_t group) const { return offsets ? offsets[group + 1] - offsets[group] : size; }
  int64_t items() const { return begin(count()); }
};

// The sums over a group's pairs, unweighted. A pair of equal rank counts half in each order. Without statistics only
// the first two are computed.
enum GroupSum : int {
  kPairs,
  kTerms,  // loss + c (a + b)^2
  kPairLoss,
  kPairLossSquared,
  kPairsCorrect,
  kPairsTied,
  kPairDifference,
  kPairDifferenceSquared,
  kPairChosen,
  kPairChosenSquared,
  kPairRejected,
  kPairRejectedSquared,
  kPairMinimum,
  kPairMaximum,
  kGroupSums
};

// How the groups' sums become a loss: one number a row, or (`per_group`) one a group.
struct GroupAverage {
  Column weight;            // one a group
  bool over_pairs = false;  // each pair counts the same, instead of each group
  bool per_group = false;
  Divisor divisor;  // with `total_weight`, what the shares of all pairs add up to
};

// `loss` is Real. `factors`, one a group: what its sum, and so its slopes, are multiplied by. `slopes`: the derivatives
// of a group's kTerms, one Real an item, contiguous. `sums` has those of PairStats, kSums a row.
struct GroupOutputs {
  void* loss = nullptr;
  double *factors = nullptr, *sums = nullptr;
  void* slopes = nullptr;
  bool statistics = false;
};

}  // namespace prefloss
