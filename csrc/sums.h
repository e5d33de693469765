// What is added up over the pairs of a row, and what becomes of it.
#pragma once

#include <cmath>

#include "pairs.h"

namespace prefloss {

// The sums over some of a row's pairs, in float64. `weight` stands for sums[kWeight], which is not used here.
struct Partial {
  double terms, weight, sums[kSums];

  PREFLOSS_HOST_DEVICE static Partial zero() {
    Partial partial{};
    partial.sums[kMinimum] = HUGE_VAL;
    partial.sums[kMaximum] = -HUGE_VAL;
    return partial;
  }

  PREFLOSS_HOST_DEVICE void add(const Partial& other) {
    terms += other.terms;
    weight += other.weight;
    for (int k = 0; k < kMinimum; k++) sums[k] += other.sums[k];
    // The comparisons are false for NaN: a NaN that is here stays, one that comes is taken.
    if (!(other.sums[kMinimum] >= sums[kMinimum]) && sums[kMinimum] == sums[kMinimum])
      sums[kMinimum] = other.sums[kMinimum];
    if (!(other.sums[kMaximum] <= sums[kMaximum]) && sums[kMaximum] == sums[kMaximum])
      sums[kMaximum] = other.sums[kMaximum];
  }
};

template <typename Real>
PREFLOSS_HOST_DEVICE void finish_row(const Partial& total, const Divisor& divisor, const ForwardOutputs& outputs,
                                     int64_t row) {
  const double by = divisor.total_weight ? divisor.resolve(total.weight) : divisor.of_row(row);
  if (outputs.loss) static_cast<Real*>(outputs.loss)[row] = static_cast<Real>(total.terms / by);
  if (outputs.sums) {
    for (int k = 0; k < kSums; k++) outputs.sums[row * kSums + k] = k == kWeight ? total.weight : total.sums[k];
  }
}

}  // namespace prefloss
