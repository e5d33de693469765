// The sums of PairStats over the pairs of one thread.
//
// Powers are summed about a pivot, which makes them plain sums, and become those about the mean at the end. The pivot
// is a number of the data, later the mean so far, and is moved whenever what it stands for has grown fourfold: the
// squares about it are then at most a few times those about the mean, whatever the data, so that the difference keeps
// its digits.
#pragma once

#include "../pair_math.h"
#include "../sums.h"

namespace prefloss::cuda {
namespace {

// The sums of x - pivot and of its square.
struct Deviations {
  double pivot = 0, first = 0, second = 0;

  __device__ __forceinline__ double add(double x) {
    const double from = x - pivot;
    first += from;
    second = fused(from, from, second);
    return from;
  }

  // The mean of numbers that weigh 1 / `inverse`. One that is not finite is no pivot.
  __device__ __forceinline__ double next_pivot(double inverse) const {
    const double mean = fused(first, inverse, pivot);
    return mean - mean == 0 ? mean : pivot;
  }

  // Moves the pivot of numbers that weigh `all`.
  __device__ __forceinline__ void move(double to, double all) {
    const double way = to - pivot, moved = fused(-way, all, first);
    second = fused(-way, first + moved, second);
    first = moved;
    pivot = to;
  }

  __device__ __forceinline__ double sum(double all) const { return fused(all, pivot, first); }

  // The squares about the mean: NaN where a number is not finite, infinite where a square is too large.
  __device__ __forceinline__ double squares(double inverse) const {
    const double excess = first * (first * inverse), difference = second - excess;
    if (second - second != 0 && first - first == 0) return second;
    return difference < 0 ? 0 : difference;
  }
};

// The lesser (greater) of two numbers, none of which is NaN. Of floats one instruction.
__device__ __forceinline__ float lesser(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ float greater(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double lesser(double a, double b) { return b < a ? b : a; }
__device__ __forceinline__ double greater(double a, double b) { return b > a ? b : a; }

__device__ __forceinline__ double finite_or_zero(double x) { return x - x == 0 ? x : 0; }

// Without weights each power of a weight is 1, and its sum the number of pairs.
template <typename Real, bool kWeighted>
class PairSums {
 public:
  // Adds the first `count` > 0 of kSize pairs.
  template <int kSize>
  __device__ __forceinline__ void add_group(int count, const Real (&chosen)[kSize], const Real (&rejected)[kSize],
                                            const Real (&weight)[kSize], const SumOfTwo<Real> (&loss)[kSize]) {
    if (!kWeighted && count_ == 0) begin(chosen[0], rejected[0], loss[0].exact());
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      if (i < count && (!kWeighted || weight[i] != 0)) add(chosen[i], rejected[i], weight[i], loss[i].exact());
    }
    if (!kWeighted) count_ += count;
    add_counts(count, chosen, rejected, weight);
    if (count_ > next_count_ || (kWeighted && squared_ > next_squared_)) move_pivots();
  }

  __device__ __forceinline__ Partial total() const {
    Partial partial = Partial::zero();
    if (count_ == 0) return partial;
    double* const sums = partial.sums;
    const double count = count_, inverse = 1 / count;
    sums[kCount] = sums[kUnits] = count;
    sums[kCorrect] = correct_;
    sums[kTied] = tied_;
    set(difference_, count, inverse, sums + kDifference);
    set(chosen_, count, inverse, sums + kChosen);
    set(rejected_, count, inverse, sums + kRejected);
    sums[kMinimum] = nan_ ? static_cast<double>(NAN) : static_cast<double>(low_);
    sums[kMaximum] = nan_ ? static_cast<double>(NAN) : static_cast<double>(high_);
    if constexpr (kWeighted) {
      const double inverse_squared = 1 / squared_;
      partial.weight = weight_;
      sums[kWeightCorrect] = weight_correct_;
      sums[kWeightTied] = weight_tied_;
      sums[kWeightedLoss] = weighted_loss_;
      sums[kWeightScale] = scale_;
      sums[kWeightFourth] = fourth_;
      sums[kWeightFifth] = fifth_;
      sums[kWeightSquared] = squared_;
      set(loss_, squared_, inverse_squared, sums + kSquaredWeightLoss);
      const CubedWeight cubes = cubes_.shifted(-loss_.first * inverse_squared);
      sums[kWeightCubed] = cubes.all;
      sums[kCubedWeightLoss] = cubes.first;
      sums[kCubedWeightLossSquares] = cubes.second;
      sums[kCubedWeightLossCubes] = cubes.third;
    } else {
      partial.weight = count;
      sums[kWeightCorrect] = correct_;
      sums[kWeightTied] = tied_;
      sums[kWeightScale] = 1;
      sums[kWeightSquared] = sums[kWeightCubed] = sums[kWeightFourth] = sums[kWeightFifth] = count;
      set(loss_, count, inverse, sums + kSquaredWeightLoss);
      const CubedWeight cubes = cubes_of_loss().shifted(-loss_.first * inverse);
      sums[kWeightedLoss] = sums[kSquaredWeightLoss];
      sums[kCubedWeightLoss] = cubes.first;
      sums[kCubedWeightLossSquares] = sums[kSquaredWeightLossSquares];
      sums[kCubedWeightLossCubes] = cubes.third;
    }
    return partial;
  }

 private:
  int count_ = 0, next_count_ = 0, correct_ = 0, tied_ = 0;
  bool nan_ = false;
  Real low_ = static_cast<Real>(HUGE_VAL), high_ = static_cast<Real>(-HUGE_VAL);
  Deviations difference_, chosen_, rejected_, loss_;
  CubedWeight cubes_{0, 0, 0, 0};  // without weights only the third has a sum of its own
  // With weights alone.
  Real greatest_ = -1;  // |weight|
  double scale_ = 0, inverse_scale_ = 0, squared_ = 0, next_squared_ = 0, fourth_ = 0, fifth_ = 0;
  double weight_ = 0, weight_correct_ = 0, weight_tied_ = 0, weighted_loss_ = 0;

  static __device__ __forceinline__ void set(const Deviations& from, double all, double inverse, double* sums) {
    sums[0] = from.sum(all);
    sums[1] = from.squares(inverse);
  }

  __device__ __forceinline__ CubedWeight cubes_of_loss() const {
    return {static_cast<double>(count_), loss_.first, loss_.second, cubes_.third};
  }

  __device__ __forceinline__ void begin(Real chosen, Real rejected, double loss) {
    difference_.pivot = finite_or_zero(static_cast<double>(chosen - rejected));
    chosen_.pivot = finite_or_zero(static_cast<double>(chosen));
    rejected_.pivot = finite_or_zero(static_cast<double>(rejected));
    loss_.pivot = finite_or_zero(loss);
  }

  // Pairs that are correct, and tied ones. A comparison gives a float 0 or 1 in one instruction, and an integer in two;
  // from 2^23 on the last bits of a float count.
  template <int kSize>
  __device__ __forceinline__ void add_counts(int count, const Real (&chosen)[kSize], const Real (&rejected)[kSize],
                                             const Real (&weight)[kSize]) {
    constexpr float kZero = 0x1p23f;
    float correct = kZero, tied = kZero;
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      if (i >= count || (kWeighted && weight[i] == 0)) continue;
      correct += chosen[i] > rejected[i] ? 1.0f : 0.0f;
      tied += chosen[i] == rejected[i] ? 1.0f : 0.0f;
    }
    correct_ += static_cast<int>(to_bits(correct) - to_bits(kZero));
    tied_ += static_cast<int>(to_bits(tied) - to_bits(kZero));
  }

  __device__ __forceinline__ void add(Real chosen, Real rejected, Real weight, double loss) {
    if constexpr (kWeighted) {
      if (!(absolute(weight) <= greatest_)) take_greatest(chosen, rejected, weight, loss);
    }
    if (kWeighted) count_++;
    nan_ = nan_ || !(chosen < rejected || chosen >= rejected);
    low_ = lesser(low_, lesser(chosen, rejected));
    high_ = greater(high_, greater(chosen, rejected));
    difference_.add(static_cast<double>(chosen - rejected));
    chosen_.add(static_cast<double>(chosen));
    rejected_.add(static_cast<double>(rejected));
    if constexpr (kWeighted) {
      const double w = static_cast<double>(weight), v = w * inverse_scale_, v2 = v * v, v3 = v2 * v;
      const double from = loss - loss_.pivot, from2 = from * from;
      weight_ += w;
      weight_correct_ += chosen > rejected ? w : 0.0;
      weight_tied_ += chosen == rejected ? w : 0.0;
      weighted_loss_ = fused(w, loss, weighted_loss_);
      squared_ += v2;
      fourth_ = fused(v2, v2, fourth_);
      fifth_ = fused(v2, v3, fifth_);
      loss_.first = fused(v2, from, loss_.first);
      loss_.second = fused(v2, from2, loss_.second);
      cubes_.all += v3;
      cubes_.first = fused(v3, from, cubes_.first);
      cubes_.second = fused(v3, from2, cubes_.second);
      cubes_.third = fused(v3 * from, from2, cubes_.third);
    } else {
      const double from = loss_.add(loss);
      cubes_.third = fused(from * from, from, cubes_.third);
    }
  }

  // The scale follows the greatest weight. A pair that outweighs all before it becomes the pivot: theirs may be far
  // from its loss, and what it weighs would drown what they differ by.
  __device__ __forceinline__ void take_greatest(Real chosen, Real rejected, Real weight, double loss) {
    if (count_ == 0) begin(chosen, rejected, loss);
    greatest_ = weight == weight ? absolute(weight) : static_cast<Real>(HUGE_VAL);
    const double scale = weight_scale(absolute(static_cast<double>(weight)));
    if (scale > scale_) {
      const double ratio = scale_ / scale, ratio2 = ratio * ratio, ratio3 = ratio2 * ratio;
      scale_ = scale;
      inverse_scale_ = 1 / scale;
      squared_ *= ratio2;
      next_squared_ *= ratio2;
      fourth_ *= ratio2 * ratio2;
      fifth_ *= ratio2 * ratio3;
      loss_.first *= ratio2;
      loss_.second *= ratio2;
      cubes_ = {cubes_.all * ratio3, cubes_.first * ratio3, cubes_.second * ratio3, cubes_.third * ratio3};
    }
    const double v = static_cast<double>(weight) * inverse_scale_;
    if (v * v > squared_) move_loss(finite_or_zero(loss));
  }

  __device__ __forceinline__ void move_loss(double to) {
    const double back = loss_.pivot - to;
    if constexpr (kWeighted) {
      cubes_ = cubes_.shifted(back);
      loss_.move(to, squared_);
    } else {
      cubes_.third = cubes_of_loss().shifted(back).third;
      loss_.move(to, static_cast<double>(count_));
    }
  }

  __device__ __forceinline__ void move_pivots() {
    const double count = count_, inverse = 1 / count;
    difference_.move(difference_.next_pivot(inverse), count);
    chosen_.move(chosen_.next_pivot(inverse), count);
    rejected_.move(rejected_.next_pivot(inverse), count);
    move_loss(loss_.next_pivot(kWeighted ? 1 / squared_ : inverse));
    next_count_ = 4 * count_;
    next_squared_ = 4 * squared_;
  }
};

}  // namespace
}  // namespace prefloss::cuda
