// What is added up over the pairs of a row, and what becomes of it.
#pragma once

#include <cmath>

#include "elementary.h"
#include "pairs.h"

namespace prefloss {

// Joins the squares about the means of two sets of numbers: what comes to their sum when both are about the common mean
// (Chan, Golub & LeVeque 1983, eq. 2.1b). `counts` are how many numbers there are, or how much they weigh.
struct CommonMean {
  double inverse, other_inverse, share;

  PREFLOSS_HOST_DEVICE CommonMean(double count, double other_count)
      : inverse(1 / count), other_inverse(1 / other_count), share(count * other_count / (count + other_count)) {}

  PREFLOSS_HOST_DEVICE double squares(double sum, double other_sum) const {
    const double distance = other_sum * other_inverse - sum * inverse;
    return share > 0 ? distance * distance * share : 0;  // not where a set is empty
  }
};

// The power of two at or below the greatest |weight|, kept so far from the ends of float64 that its inverse is a
// number.
PREFLOSS_HOST_DEVICE double weight_scale(double greatest) {
  const uint64_t exponent = to_bits(greatest) >> 52;  // of a number >= 0
  return from_bits((exponent < 1 ? uint64_t{1} : exponent > 2045 ? uint64_t{2045} : exponent) << 52);
}

// The squared ratio of two scales; a set without pairs has the scale 0.
PREFLOSS_HOST_DEVICE double squared_ratio(double scale, double greater) {
  const double ratio = scale == greater ? 1 : scale / greater;
  return ratio * ratio;
}

// The lesser (greater) of two numbers, or the one that is NaN: every comparison with NaN is false.
PREFLOSS_HOST_DEVICE double lesser_or_nan(double a, double b) { return !(b >= a) && a == a ? b : a; }
PREFLOSS_HOST_DEVICE double greater_or_nan(double a, double b) { return !(b <= a) && a == a ? b : a; }

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
    if (other.sums[kCount] != 0) add_statistics(other.sums);
  }

  PREFLOSS_HOST_DEVICE void add_statistics(const double* other) {
    const double scale = sums[kWeightScale] > other[kWeightScale] ? sums[kWeightScale] : other[kWeightScale];
    const double here = squared_ratio(sums[kWeightScale], scale), there = squared_ratio(other[kWeightScale], scale);
    const double w2 = here * sums[kWeightSquared], other_w2 = there * other[kWeightSquared];
    const double w2l = here * sums[kSquaredWeightLoss], other_w2l = there * other[kSquaredWeightLoss];
    const CommonMean pairs(sums[kCount], other[kCount]), weighted(w2, other_w2);
    sums[kWeightScale] = scale;
    sums[kWeightSquared] = w2 + other_w2;
    sums[kSquaredWeightLoss] = w2l + other_w2l;
    sums[kSquaredWeightLossSquares] = here * sums[kSquaredWeightLossSquares] +
                                      there * other[kSquaredWeightLossSquares] + weighted.squares(w2l, other_w2l);
    constexpr int kWithSquares[] = {kDifference, kChosen, kRejected};
    constexpr int kPlain[] = {kCount, kWeightCorrect, kWeightTied, kWeightedLoss, kCorrect, kTied};
    for (const int kind : kWithSquares) {
      sums[kind + 1] += other[kind + 1] + pairs.squares(sums[kind], other[kind]);
      sums[kind] += other[kind];
    }
    for (const int kind : kPlain) sums[kind] += other[kind];
    sums[kMinimum] = lesser_or_nan(sums[kMinimum], other[kMinimum]);
    sums[kMaximum] = greater_or_nan(sums[kMaximum], other[kMaximum]);
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
