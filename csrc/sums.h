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

// The ratio of two scales; a set without pairs has the scale 0.
PREFLOSS_HOST_DEVICE double scale_ratio(double scale, double greater) { return scale == greater ? 1 : scale / greater; }

// The sums of v^3 x^k, k = 0 ... 3.
struct CubedWeight {
  double all, first, second, third;

  PREFLOSS_HOST_DEVICE static CubedWeight of(const double* sums, double factor) {
    return {factor * sums[kWeightCubed], factor * sums[kCubedWeightLoss], factor * sums[kCubedWeightLossSquares],
            factor * sums[kCubedWeightLossCubes]};
  }

  // Of x + by.
  PREFLOSS_HOST_DEVICE CubedWeight shifted(double by) const {
    return {all, first + by * all, second + by * (2 * first + by * all),
            third + by * (3 * second + by * (3 * first + by * all))};
  }
};

// The lesser (greater) of two numbers, or the one that is NaN: every comparison with NaN is false.
PREFLOSS_HOST_DEVICE double lesser_or_nan(double a, double b) { return !(b >= a) && a == a ? b : a; }
PREFLOSS_HOST_DEVICE double greater_or_nan(double a, double b) { return !(b <= a) && a == a ? b : a; }

// The sums that the means of a set are made of.
struct Means {
  double count, difference, chosen, rejected, weight_squared, squared_weight_loss;
};

// The sums over some of a row's pairs, in float64. `weight` stands for sums[kWeight], which is not used here.
struct Partial {
  double terms, weight, sums[kGathered];

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
    add_units(other);
    const CommonMean pairs(sums[kCount], other[kCount]);
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

  // The sums over units.
  PREFLOSS_HOST_DEVICE void add_units(const double* other) {
    const double scale = sums[kWeightScale] > other[kWeightScale] ? sums[kWeightScale] : other[kWeightScale];
    const double here = scale_ratio(sums[kWeightScale], scale), there = scale_ratio(other[kWeightScale], scale);
    const double here2 = here * here, there2 = there * there;
    const double v2 = here2 * sums[kWeightSquared], other_v2 = there2 * other[kWeightSquared], all = v2 + other_v2;
    const double v2l = here2 * sums[kSquaredWeightLoss], other_v2l = there2 * other[kSquaredWeightLoss];
    const bool both = v2 > 0 && other_v2 > 0;
    const double step =
        both ? (other_v2l / other_v2 - v2l / v2) / all : 0;  // from mean to mean, over the weight of all
    const CubedWeight cubes = CubedWeight::of(sums, here2 * here).shifted(-step * other_v2);
    const CubedWeight other_cubes = CubedWeight::of(other, there2 * there).shifted(step * v2);
    sums[kUnits] += other[kUnits];
    sums[kWeightScale] = scale;
    sums[kWeightSquared] = all;
    sums[kWeightCubed] = cubes.all + other_cubes.all;
    sums[kWeightFourth] = here2 * here2 * sums[kWeightFourth] + there2 * there2 * other[kWeightFourth];
    sums[kWeightFifth] = here2 * here2 * here * sums[kWeightFifth] + there2 * there2 * there * other[kWeightFifth];
    sums[kSquaredWeightLoss] = v2l + other_v2l;
    sums[kSquaredWeightLossSquares] = here2 * sums[kSquaredWeightLossSquares] +
                                      there2 * other[kSquaredWeightLossSquares] +
                                      (both ? step * step * v2 * other_v2 * all : 0);
    sums[kCubedWeightLoss] = cubes.first + other_cubes.first;
    sums[kCubedWeightLossSquares] = cubes.second + other_cubes.second;
    sums[kCubedWeightLossCubes] = cubes.third + other_cubes.third;
  }

  // From weights over kWeightScale to weights over a greater power of two.
  PREFLOSS_HOST_DEVICE void rescale_units(double scale) {
    const double ratio = scale_ratio(sums[kWeightScale], scale), ratio2 = ratio * ratio, ratio3 = ratio2 * ratio;
    sums[kWeightScale] = scale;
    constexpr int kOfSquares[] = {kWeightSquared, kSquaredWeightLoss, kSquaredWeightLossSquares};
    constexpr int kOfCubes[] = {kWeightCubed, kCubedWeightLoss, kCubedWeightLossSquares, kCubedWeightLossCubes};
    for (const int kind : kOfSquares) sums[kind] *= ratio2;
    for (const int kind : kOfCubes) sums[kind] *= ratio3;
    sums[kWeightFourth] *= ratio2 * ratio2;
    sums[kWeightFifth] *= ratio2 * ratio3;
  }

  // From what numbers differ from their own mean by to what they differ from a mean of more of them by, which is that
  // of `all`. Sets whose squares are about one mean are added number by number.
  PREFLOSS_HOST_DEVICE void move_to_mean(const Means& all) {
    const double inverse = 1 / sums[kCount], inverse_of_all = 1 / all.count;
    constexpr int kWithSquares[] = {kDifference, kChosen, kRejected};
    const double of_all[] = {all.difference, all.chosen, all.rejected};
    for (int k = 0; k < 3; k++) {
      const double way = sums[kWithSquares[k]] * inverse - of_all[k] * inverse_of_all;
      sums[kWithSquares[k] + 1] += sums[kCount] > 0 ? way * way * sums[kCount] : 0;
    }
    if (!(sums[kWeightSquared] > 0)) return;
    const double way = sums[kSquaredWeightLoss] / sums[kWeightSquared] - all.squared_weight_loss / all.weight_squared;
    const CubedWeight cubes = CubedWeight::of(sums, 1).shifted(way);
    sums[kSquaredWeightLossSquares] += way * way * sums[kWeightSquared];
    sums[kCubedWeightLoss] = cubes.first;
    sums[kCubedWeightLossSquares] = cubes.second;
    sums[kCubedWeightLossCubes] = cubes.third;
  }

  // The sums over units of one alone, of weight W and mean loss L. A number differs from its own mean by 0, or by NaN
  // where it is not finite.
  PREFLOSS_HOST_DEVICE static void set_unit(double weight, double loss, double* sums) {
    const double scale = weight_scale(absolute(weight)), v = weight / scale, v2 = v * v;
    sums[kUnits] = 1;
    sums[kWeightScale] = scale;
    sums[kWeightSquared] = v2;
    sums[kWeightCubed] = v2 * v;
    sums[kWeightFourth] = v2 * v2;
    sums[kWeightFifth] = v2 * v2 * v;
    sums[kSquaredWeightLoss] = v2 * loss;
    sums[kSquaredWeightLossSquares] = sums[kCubedWeightLoss] = loss - loss;
    sums[kCubedWeightLossSquares] = sums[kCubedWeightLossCubes] = loss - loss;
  }
};

template <typename Real>
PREFLOSS_HOST_DEVICE void finish_row(const Partial& total, const Divisor& divisor, const ForwardOutputs& outputs,
                                     int64_t row) {
  const double by = divisor.total_weight ? divisor.resolve(total.weight) : divisor.of_row(row);
  if (outputs.loss) static_cast<Real*>(outputs.loss)[row] = static_cast<Real>(total.terms / by);
  if (outputs.sums) {
    double* sums = outputs.sums + row * kSums;
    for (int k = 0; k < kSums; k++) sums[k] = k == kWeight ? total.weight : k < kGathered ? total.sums[k] : 0;
  }
}

}  // namespace prefloss
