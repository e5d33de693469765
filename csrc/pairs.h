// What crosses the seam between Python and the kernels: plain structs of pointers, strides and numbers.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace prefloss {

// From so many pairs, or items, on a second thread of the CPU is worth its start.
constexpr int64_t kParallelPairs = 32768;

// Rewards have one of the first four; options may be masks; indices and ranks are integers.
enum class Dtype : int { kFloat64, kFloat32, kBFloat16, kFloat16, kBool, kInt64, kInt32, kInt16, kInt8, kUInt8 };
constexpr int kDtypes = 10;
constexpr int kBytes[kDtypes] = {8, 4, 2, 2, 1, 8, 4, 2, 1, 1};  // an entry of each

// One entry a pair. Strides are in entries; `row_stride` leads to the next row of a batch (vmap). data == nullptr: not
// given.
struct Column {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t stride = 0, row_stride = 0;

  PREFLOSS_HOST_DEVICE explicit operator bool() const { return data != nullptr; }

  template <typename Stored>
  PREFLOSS_HOST_DEVICE Stored* entry(int64_t row, int64_t index) const {
    return static_cast<Stored*>(data) + row * row_stride + index * stride;
  }
};

struct Options {
  double beta = 1, margin = 0, target = 1, label_smoothing = 0, center_rewards_coefficient = 0;

  // None of them is given.
  PREFLOSS_HOST_DEVICE bool are_off() const {
    return beta == 1 && margin == 0 && target == 1 && label_smoothing == 0 && center_rewards_coefficient == 0;
  }
};

// `rows` independent sets of `count` pairs. margin, weight and target are optional; the numbers in `options` stand in
// for the first and the last.
struct Pairs {
  Column chosen, rejected, margin, weight, target;
  int64_t rows = 1, count = 0;
  Options options;

  PREFLOSS_HOST_DEVICE bool has_columns() const { return margin || weight || target; }

  // Nothing but chosen and rejected: the default call.
  PREFLOSS_HOST_DEVICE bool plain() const { return !has_columns() && options.are_off(); }
};

// Items by index: pair p compares the items chosen[p] and rejected[p], both of int64 or both of int32.
struct Comparisons {
  Column scores;  // one an item
  int64_t items = 0;
  Column chosen, rejected;
};

// What the sum over a row is divided by: a number, or one float64 a row. A row's total weight is replaced by 1 where it
// is 0: pairs that are all masked out have the loss 0.
struct Divisor {
  double number = 1;
  const double* rows = nullptr;
  int64_t stride = 0;
  bool total_weight = false;  // `rows` are total weights; forward, which computes them, needs no `rows` then

  PREFLOSS_HOST_DEVICE double of_row(int64_t row) const { return rows ? resolve(rows[row * stride]) : number; }
  PREFLOSS_HOST_DEVICE double resolve(double value) const { return total_weight && value == 0 ? 1 : value; }
};

// An upstream gradient with one entry a row becomes a number, already divided; one a pair (reduction "none") is never
// divided.
template <typename Real>
PREFLOSS_HOST_DEVICE double row_scale(const Column& upstream, const Divisor& divisor, int64_t row) {
  return static_cast<double>(*upstream.entry<Real>(row, 0)) / divisor.of_row(row);
}

// The sums of PairStats, over the pairs with weight != 0; python/prefloss/sums.py says the same names in the same
// order. w is a pair's weight, l its loss. A unit is what was drawn independently: a pair, a group, or an item that is
// compared by index; W is the weight of its pairs, v = W / kWeightScale, L their mean loss, M = kSquaredWeightLoss /
// kWeightSquared. "Squares" are of what a number differs from the mean by, so that they keep their digits wherever the
// mean lies.
enum Sum : int {
  kCount,
  kWeight,
  kWeightCorrect,  // w of the pairs with a > b
  kWeightTied,     // w of the pairs with a = b
  kWeightedLoss,   // w l
  kUnits,          // with W != 0
  kWeightScale,    // a power of two near the greatest |W|: v^5 is a number for weights of any scale
  kWeightSquared,  // v^2
  kWeightCubed,
  kWeightFourth,
  kWeightFifth,
  kSquaredWeightLoss,         // v^2 L
  kSquaredWeightLossSquares,  // v^2 (L - M)^2
  kCubedWeightLoss,           // v^3 (L - M)
  kCubedWeightLossSquares,    // v^3 (L - M)^2
  kCubedWeightLossCubes,      // v^3 (L - M)^3
  kCorrect,
  kTied,
  kDifference,
  kDifferenceSquares,
  kChosen,
  kChosenSquares,
  kRejected,
  kRejectedSquares,
  kMinimum,
  kMaximum,
  kGathered,                  // so many are gathered pair by pair; the others are of a whole call, or 0
  kListVariance = kGathered,  // of L of one list of two ranks, by its rows and columns
  kListVarianceError,         // the squares of that variance's two parts, each divided by its degrees of freedom
  kLinked,                    // of comparisons by index: kCount^2; twice that where one item is in all of them
  kLinkedSquares,             // and their (w / kWeightScale)^2 (l - kWeightedLoss / kWeight)^2
  kSums
};

// Where forward writes. `loss` has one entry a row, in the accumulation type (float64 for float64 rewards, else
// float32); `terms` one a pair. Either may be missing. `sums` has kSums a row; without `statistics` only the total
// weight of given weights is computed.
struct ForwardOutputs {
  void* loss = nullptr;
  Column terms;
  double* sums = nullptr;
  bool statistics = false;
};

// Gradients, or directions, one entry a pair; those without data are not wanted, or zero.
struct Gradients {
  Column chosen, rejected, margin;
};

}  // namespace prefloss
