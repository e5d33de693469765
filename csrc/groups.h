// Groups of items, all pairs of different rank compared: what crosses the seam between Python and the kernels, and what
// a group adds to a row.
#pragma once

#include "storage.h"
#include "sums.h"

namespace prefloss {

// A single entry of a column of floating point or bool.
PREFLOSS_HOST_DEVICE double entry_of(const Column& column, int64_t row, int64_t index) {
  switch (column.dtype) {
    case Dtype::kFloat64:
      return *column.entry<double>(row, index);
    case Dtype::kFloat32:
      return static_cast<double>(*column.entry<float>(row, index));
    case Dtype::kBFloat16:
      return static_cast<double>(widen(*column.entry<BFloat16>(row, index)));
    case Dtype::kFloat16:
      return static_cast<double>(widen(*column.entry<Float16>(row, index)));
    default:
      return *column.entry<bool>(row, index) ? 1.0 : 0.0;
  }
}

// Groups of so many items take linear time on the CPU, or of twice as many where scores lie far apart; in smaller ones
// it is quicker to visit each pair.
constexpr int64_t kLargeGroup = 512;

// There are fewer items than this: their numbers, and those of what is read behind the last one, are int32.
constexpr int64_t kMostItems = (int64_t{1} << 31) - (1 << 16);

// Lower ranks are preferred. `rewards` and `ranks` have an entry an item, of `items` / `rows` a row. Group g has the
// items offsets[g] ... offsets[g + 1] - 1, counted through all rows, at most `size` of them, or, where there are no
// offsets, `size` items from g * size on; of these, where `filled` says how many, only the first are items, and the
// rest is never read. The CUDA kernels take contiguous rewards of the type that they are computed in, and int64 ranks.
struct Groups {
  Column rewards, ranks;
  int64_t rows = 1, groups = 0, size = 0, items = 0;    // groups a row; of so many items each; items in all
  const int64_t *offsets = nullptr, *filled = nullptr;  // filled: one a group, counted through all rows
  // On a GPU, where groups take linear time: their ranks in ascending order, and which of the group's items has each.
  const int64_t *sorted_ranks = nullptr, *order = nullptr;
  Options options;         // target: of pairs of different rank
  bool half_ties = false;  // pairs of equal rank count too, with target 1/2 and no margin
  int64_t large = 0;       // groups of so many items take linear time on the CPU

  PREFLOSS_HOST_DEVICE bool in_float64() const { return rewards.dtype == Dtype::kFloat64; }
  PREFLOSS_HOST_DEVICE int64_t count() const { return rows * groups; }
  PREFLOSS_HOST_DEVICE int64_t begin(int64_t group) const { return offsets ? offsets[group] : group * size; }
  // Items and places that are not filled.
  PREFLOSS_HOST_DEVICE int64_t places_of(int64_t group) const {
    return offsets ? offsets[group + 1] - offsets[group] : size;
  }
  PREFLOSS_HOST_DEVICE int64_t size_of(int64_t group) const {
    const int64_t places = places_of(group);
    if (!filled) return places;
    const int64_t items_there = filled[group];  // no number leads out of the group
    return items_there < 0 ? 0 : items_there < places ? items_there : places;
  }
  PREFLOSS_HOST_DEVICE bool is_filled(int64_t item, int64_t group) const {
    return !filled || item - begin(group) < size_of(group);
  }
  PREFLOSS_HOST_DEVICE int64_t row_of(int64_t group) const { return group / groups; }
  // An item counted through all rows, counted from the beginning of its row.
  PREFLOSS_HOST_DEVICE int64_t in_row(int64_t item, int64_t row) const { return item - row * (items / rows); }
};

// The options of pairs of equal rank.
PREFLOSS_HOST_DEVICE Options of_equal_rank(Options options) {
  options.margin = 0;
  options.target = 0.5;
  return options;
}

// The sums over a group's pairs, unweighted. A pair of equal rank counts half in each order. "Squares" are of what a
// number differs from the mean by. Without statistics only the first two are computed.
enum GroupSum : int {
  kPairs,
  kTerms,  // loss + c (a + b)^2
  kPairLoss,
  kPairsCorrect,
  kPairsTied,
  kPairDifference,
  kPairDifferenceSquares,
  kPairChosen,
  kPairChosenSquares,
  kPairRejected,
  kPairRejectedSquares,
  kPairMinimum,
  kPairMaximum,
  kGroupSums
};

PREFLOSS_HOST_DEVICE constexpr int group_sums(bool statistics) { return statistics ? kGroupSums : kTerms + 1; }

// Adds the sums over other pairs of a group to these.
template <bool kStatistics>
PREFLOSS_HOST_DEVICE void add_group_sums(double* sums, const double* other) {
  if constexpr (kStatistics) {
    constexpr int kWithSquares[] = {kPairDifference, kPairChosen, kPairRejected};
    const CommonMean pairs(sums[kPairs], other[kPairs]);
    for (const int kind : kWithSquares) {
      sums[kind + 1] += other[kind + 1] + pairs.squares(sums[kind], other[kind]);
      sums[kind] += other[kind];
    }
    sums[kPairLoss] += other[kPairLoss];
    sums[kPairsCorrect] += other[kPairsCorrect];
    sums[kPairsTied] += other[kPairsTied];
    sums[kPairMinimum] = lesser_or_nan(sums[kPairMinimum], other[kPairMinimum]);
    sums[kPairMaximum] = greater_or_nan(sums[kPairMaximum], other[kPairMaximum]);
  }
  sums[kPairs] += other[kPairs];
  sums[kTerms] += other[kTerms];
}

// How the groups' sums become a loss: one number a row, or (`per_group`) one a group.
struct GroupAverage {
  Column weight;            // one a group
  bool over_pairs = false;  // each pair counts the same, instead of each group
  bool per_group = false;
  Divisor divisor;  // with `total_weight`, what the shares of all pairs add up to
};

// `loss` is of the type that rewards are computed in. `factors`, one a group, where they are wanted: what the sum of a
// group's pairs is multiplied by. `slopes`, where they are wanted: the derivatives of the loss, one an item,
// contiguous, rounded once to that type, exactly 0 in a group that counts nothing. `sums` has those of PairStats, kSums
// a row.
struct GroupOutputs {
  void* loss = nullptr;
  double *factors = nullptr, *sums = nullptr;
  void* slopes = nullptr;
  bool statistics = false;
};

enum class GroupStatus { kDone, kNanRank };

// The upstream gradient of the loss.
struct GroupUpstream {
  Column column;  // an entry a group, or one a row
  bool per_group = false;

  PREFLOSS_HOST_DEVICE double of(const Groups& groups, int64_t group) const {
    const int64_t row = groups.row_of(group);
    return entry_of(column, row, per_group ? group - row * groups.groups : 0);
  }
};

// What each pair of a group weighs. A group without pairs, or of weight 0, counts nothing, whatever its rewards are.
PREFLOSS_HOST_DEVICE double share_of(const GroupAverage& average, const Groups& groups, int64_t group, double pairs) {
  const int64_t row = groups.row_of(group);
  const double weight = average.weight ? entry_of(average.weight, row, group - row * groups.groups) : 1;
  return pairs == 0 ? 0 : average.over_pairs ? weight : weight / pairs;
}

// An item's gradient: in a group that counts nothing its slope is 0, and no upstream gradient makes that NaN.
PREFLOSS_HOST_DEVICE double times_upstream(double slope, double upstream) { return slope == 0 ? 0 : slope * upstream; }

// A group's loss.
PREFLOSS_HOST_DEVICE double group_loss(const double* group, double share) {
  return share == 0 ? 0 : share * group[kTerms];
}

constexpr int kListSums = 2;  // kListVariance and kListVarianceError

// How far the mean loss of one list of two ranks may be from that of other items as these, m and n of them: the
// variance of the means of the losses of each better item over m, and of each worse one over n (Sen 1960; DeLong et al.
// 1988). `row_squares`, `column_squares`: of what such means differ from their mean by. Nothing can be said where m or
// n is 1.
PREFLOSS_HOST_DEVICE void set_list(double m, double row_squares, double n, double column_squares, double* list) {
  if (m < 2 || n < 2) return;
  const double rows = row_squares / (m - 1) / m, columns = column_squares / (n - 1) / n;
  list[0] = rows + columns;
  list[1] = rows * rows / (m - 1) + columns * columns / (n - 1);
}

// Adds a group to the sums of its row, in which it is a unit.
PREFLOSS_HOST_DEVICE void add_to_row(const double* group, double share, bool statistics, Partial& row) {
  if (share == 0) return;
  row.terms += group_loss(group, share);
  row.weight += share * group[kPairs];
  if (!statistics) return;
  Partial part = Partial::zero();
  Partial::set_unit(share * group[kPairs], group[kPairLoss] / group[kPairs], part.sums);
  part.sums[kCount] = group[kPairs];
  part.sums[kWeightCorrect] = share * group[kPairsCorrect];
  part.sums[kWeightTied] = share * group[kPairsTied];
  part.sums[kWeightedLoss] = share * group[kPairLoss];
  for (int k = kPairsCorrect; k < kGroupSums; k++) part.sums[kCorrect + k - kPairsCorrect] = group[k];
  row.add(part);
}

}  // namespace prefloss
