// The formula, once, for host and device: the Bradley-Terry loss of one pair, its slope and its curvature.
//
//   z          = beta (a - b) - m
//   loss(z, t) = -t log sigma(z) - (1 - t) log sigma(-z)
//   slope      = d loss / dz
//   curvature  = d2 loss / dz2 = sigma(z) sigma(-z)
//
// Sources: Bradley & Terry 1952; Ouyang et al. 2022, eq. 1; for the margin m Touvron et al. 2023, eq. 2. The target t
// already holds the label smoothing. The README says the worst error over every float z.
#pragma once

#include "elementary.h"
#include "pairs.h"

namespace prefloss {
namespace {

// A number as the sum of two, which is yet to be rounded.
template <typename Real>
struct SumOfTwo {
  Real large, rest;

  PREFLOSS_HOST_DEVICE Real rounded() const { return large + rest; }
  PREFLOSS_HOST_DEVICE double exact() const { return static_cast<double>(large) + static_cast<double>(rest); }
};

// log(1 + exp(-|z|)) + hinge. Near z = 0 the logarithm is taken about 2: log(1 + e) = log 2 + log1p((e - 1) / 2).
// `hinge` is added in the order that rounds least: the largest term last.
template <typename Real>
PREFLOSS_HOST_DEVICE SumOfTwo<Real> softplus_and(Real magnitude, Real hinge) {
  const Rounded<Real> e = exp_negative(magnitude);
  const bool near = magnitude < Real(0.6931);
  const Real f = near ? fused(Real(0.5), e.value, Real(-0.5)) : e.value;
  const Real f_low = near ? Real(0.5) * e.remainder : e.remainder;
  const Real large = near ? Real(0.693147180559945309417) : hinge, small = near ? hinge : Real(0);
  return {large, (small + f) + log1p_minus(f, f_low)};
}

// The same rounded, and what the rounding dropped: losses near log 2 differ by less.
template <typename Real>
PREFLOSS_HOST_DEVICE Rounded<Real> softplus_plus(Real magnitude, Real hinge) {
  const SumOfTwo<Real> sum = softplus_and(magnitude, hinge);
  const Real value = sum.rounded();
  return {value, value - value == 0 ? sum.rest - (value - sum.large) : Real(0)};
}

// t and 1 - t. Both are formed before they are rounded: 1 - t of a rounded t would lose the digits of a small one.
template <typename Real>
struct Target {
  Real right, wrong;
};

template <typename Real>
PREFLOSS_HOST_DEVICE Real hinge_of(Real z, const Target<Real>& target) {
  const Real magnitude = absolute(z), factor = z < 0 ? target.right : target.wrong;
  return factor == 0 ? Real(0) : magnitude * factor;  // inf * 0 must not become NaN
}

template <typename Real>
PREFLOSS_HOST_DEVICE Rounded<Real> pair_loss(Real z, const Target<Real>& target) {
  return softplus_plus(absolute(z), hinge_of(z, target));
}

// pair_loss(z, {1, 0}), the default: -log sigma(z).
template <typename Real>
PREFLOSS_HOST_DEVICE Rounded<Real> pair_loss_and_remainder(Real z) {
  const Real magnitude = absolute(z);
  return softplus_plus(magnitude, z < 0 ? magnitude : Real(0));
}

template <typename Real>
PREFLOSS_HOST_DEVICE Real pair_loss(Real z) {
  return pair_loss_and_remainder(z).value;
}

// sigma(z) and sigma(-z) from one exponential and one division, corrected by the parts that rounding dropped.
// `e` is exp(-|z|).
template <typename Real>
PREFLOSS_HOST_DEVICE Real sigmoid(Real z, const Rounded<Real>& e) {
  const Real divisor = Real(1) + e.value, divisor_low = (e.value - (divisor - Real(1))) + e.remainder;
  const Real n = z < 0 ? e.value : Real(1), n_low = z < 0 ? e.remainder : Real(0), q = n / divisor;
  return fused(fused(-q, divisor_low, n_low), fused(Real(-0.5), e.value, Real(1)), q);
}

template <typename Real>
PREFLOSS_HOST_DEVICE Real sigmoid(Real z) {
  return sigmoid(z, exp_negative(absolute(z)));
}

// `e` is exp(-|z|).
template <typename Real>
PREFLOSS_HOST_DEVICE Real pair_slope(Real z, const Rounded<Real>& e) {
  return -sigmoid(-z, e);
}

template <typename Real>
PREFLOSS_HOST_DEVICE Real pair_slope(Real z) {
  return pair_slope(z, exp_negative(absolute(z)));
}

// factor * pair_slope(z) for |z| <= kModerate, for results that are rounded to half precision: within 2^-17 of it,
// which is 2^-6 ulp of float16 and 2^-9 of bfloat16. A GPU has instructions for 2^x and 1 / x: they and the product
// below err by less than 2^-18.
PREFLOSS_HOST_DEVICE float moderate_slope(float z, float factor) {
#if defined(__CUDA_ARCH__)
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(z * 1.44269504088896341f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return -factor * inverse;
#else
  return -factor / (1.0f + exp_moderate<Digits::kHalf>(-z));
#endif
}

// The sum of pair_loss(z) over many z with one logarithm for all of them: sum log(1 + e) = log prod (1 + e). With u =
// prod (1 + e) - 1, always positive, tiny losses keep their digits. u is below 2^kMost after kMost pairs.
template <typename Sum, int kPairs = sizeof(Sum) == sizeof(double) ? 512 : 64>
struct LossProduct {
  static constexpr int kMost = kPairs;
  // What is kept of each hinge: in float32 a part, so that their sum is no infinity where none of them is.
  static constexpr int kParts = sizeof(Sum) == sizeof(double) ? 1 : kMost;
  Sum u = 0, hinge = 0;

  template <typename Real>
  PREFLOSS_HOST_DEVICE void add(Real z) {
    add(z, exp_negative(absolute(z)));
  }

  // Also returns the slope, from the same exponential.
  template <typename Real>
  PREFLOSS_HOST_DEVICE Real add_for_slope(Real z) {
    const Rounded<Real> e = exp_negative(absolute(z));
    add(z, e);
    return pair_slope(z, e);
  }

  template <typename Real>
  PREFLOSS_HOST_DEVICE void add(Real z, const Rounded<Real>& exponential) {
    const Sum e = static_cast<Sum>(exponential.value);
    u += fused(u, e, e);
    add_hinge(static_cast<Sum>(negative_part(z)));  // NaN is in u already
  }

  // The same bits as add(z.first) and add(z.second).
  PREFLOSS_HOST_DEVICE void add(TwoFloats z) {
    const TwoFloats e = exp_negative(TwoFloats(absolute(z.first), absolute(z.second))).value;
    add(z.first, {e.first, 0});
    add(z.second, {e.second, 0});
  }

  PREFLOSS_HOST_DEVICE void add_hinge(Sum its) {
    hinge = kParts == 1 ? hinge + its : fused(its, Sum(1) / kParts, hinge);
  }
  PREFLOSS_HOST_DEVICE double all_hinges() const { return static_cast<double>(hinge) * kParts; }

  // What others add up to.
  template <typename Other, int kOthers>
  PREFLOSS_HOST_DEVICE void add_product(const LossProduct<Other, kOthers>& others) {
    const Sum u_others = static_cast<Sum>(others.u);
    u += fused(u, u_others, u_others);
    static_assert(kParts == 1, "sums of products are in float64");
    hinge = fused(static_cast<Sum>(others.hinge), Sum(LossProduct<Other, kOthers>::kParts), hinge);
  }

  PREFLOSS_HOST_DEVICE double value() const { return all_hinges() + log1p_positive(static_cast<double>(u)); }
};

using PairLossSum = LossProduct<double>;

// The same for |z| <= kModerate: sum -log sigma(z) = log prod (1 + exp(-z)), without a hinge. exp(-16) is 1e-7, so that
// a rounding of the product, 2^-53 of it, is at most 1e-9 of what a pair adds.
struct ModerateLossProduct {
  static constexpr int kMost = 32;  // pairs between two calls of take_exponent; each adds less than 24 to the exponent
  double product = 1;

  PREFLOSS_HOST_DEVICE void add(float z) { multiply(exp_moderate<Digits::kFloat>(z)); }

  // Two, which are one product in float32 first: conversions to float64 are slow.
  PREFLOSS_HOST_DEVICE void add(float z, float w) {
    const float e = exp_moderate<Digits::kFloat>(z), f = exp_moderate<Digits::kFloat>(w);
    multiply(fused(e, f, e) + f);
  }

  // Divides the product by the power of two that leaves it in [1, 2), and returns the exponent.
  PREFLOSS_HOST_DEVICE int64_t take_exponent() {
    const uint64_t bits = to_bits(product), exponent = (bits >> 52) - 1023;
    product = from_bits(bits - (exponent << 52));
    return static_cast<int64_t>(exponent);
  }

  // Of the product, and of 2^exponent.
  PREFLOSS_HOST_DEVICE double value() const { return log1p_positive(product - 1); }
  PREFLOSS_HOST_DEVICE static double logarithm(int64_t exponent) {
    return static_cast<double>(exponent) * 0.693147180559945309417;
  }

 private:
  PREFLOSS_HOST_DEVICE void multiply(float e) { product = fused(product, static_cast<double>(e), product); }
};

template <typename Real>
struct PairDerivatives {
  Real slope, curvature;
};

// For target 1 the slope has the same bits as pair_slope(z): options that change nothing change no bit.
template <typename Real>
PREFLOSS_HOST_DEVICE PairDerivatives<Real> pair_derivatives(Real z, const Target<Real>& target) {
  const Real above = sigmoid(-z), below = sigmoid(z);
  return {fused(target.wrong, below, -target.right * above), above * below};
}

template <typename Real>
struct PairGradient {
  Real chosen, rejected, margin;
};

// What `Formula::second` returns: the derivatives by the upstream gradient, and by what the pair's gradient depends on.
template <typename Real>
struct PairSecond {
  Real upstream;
  PairGradient<Real> gradient;
};

// A number that a weight and a derivative are multiplied by, in two factors. The number, or its product with one of the
// two, may lie outside of Real where the product of all three does not: weights of 1e-42 have a mean whose divisor's
// inverse is no float. `first` is a power of two, so multiplying by it rounds nothing.
template <typename Real>
struct Scale {
  Real first = 1, second = 1;

  PREFLOSS_HOST_DEVICE static Scale of(double number) {
    const uint64_t bits = to_bits(number);
    const int biased = static_cast<int>(bits >> 52 & 0x7ff);
    if (biased == 0 || biased == 0x7ff) return {1, static_cast<Real>(number)};  // 0, nearly 0, infinite, NaN
    constexpr int kMost = sizeof(Real) == sizeof(double) ? 1023 : 252;          // half of it is an exponent of Real
    const int exact = biased - 1023, exponent = exact > kMost ? kMost : exact < -kMost ? -kMost : exact;
    const double mantissa = from_bits((bits & ~(uint64_t{0x7ff} << 52)) | uint64_t{1023} << 52);
    return {static_cast<Real>(power_of_two(exponent / 2)),
            static_cast<Real>(mantissa * power_of_two(exponent - exponent / 2))};
  }

  PREFLOSS_HOST_DEVICE Real times(Real weight, Real derivative) const { return weight * first * derivative * second; }

 private:
  PREFLOSS_HOST_DEVICE static double power_of_two(int exponent) {
    return from_bits(static_cast<uint64_t>(1023 + exponent) << 52);
  }
};

// The formula with every option on. An option that is off touches nothing: c = 0 must not turn an overflowing (a + b)^2
// into NaN. Nor does a pair of weight 0, whatever its rewards are.
template <typename Real>
struct Formula {
  Real beta, center;
  // A pair's t and 1 - t are `kept` times what it has of them, and an offset. A number t that all pairs share is in the
  // offsets, where float64 has formed both, and `kept` is 0.
  Real kept;
  Target<Real> offset;

  // Whether each pair's target is 1, and nothing smoothes it: then the loss is pair_loss(z), and its slope
  // pair_slope(z), to the last bit.
  PREFLOSS_HOST_DEVICE bool all_are_right() const { return kept == 0 && offset.right == 1 && offset.wrong == 0; }

  // And no centring either: a pair's term is softplus(-z).
  PREFLOSS_HOST_DEVICE bool is_softplus() const { return all_are_right() && center == 0; }

  // All pairs have the target of the options, or each has its own (`target_of_pair`). The smoothing may be negative,
  // down to any number: a correction for flipped labels.
  PREFLOSS_HOST_DEVICE Formula(const Options& options, bool target_of_pair)
      : beta(static_cast<Real>(options.beta)), center(static_cast<Real>(options.center_rewards_coefficient)) {
    const double smoothing = options.label_smoothing, rest = 1 - 2 * smoothing;
    kept = target_of_pair ? static_cast<Real>(rest) : Real(0);
    offset.right = static_cast<Real>(smoothing + (target_of_pair ? 0 : rest * options.target));
    offset.wrong = static_cast<Real>(smoothing + (target_of_pair ? 0 : rest * (1 - options.target)));
  }

  PREFLOSS_HOST_DEVICE explicit Formula(const Pairs& pairs) : Formula(pairs.options, static_cast<bool>(pairs.target)) {}

  PREFLOSS_HOST_DEVICE Real logit(Real chosen, Real rejected, Real margin) const {
    return fused(beta, chosen - rejected, -margin);
  }

  PREFLOSS_HOST_DEVICE Target<Real> smoothed(Real target) const {
    return {fused(target, kept, offset.right), fused(Real(1) - target, kept, offset.wrong)};
  }

  PREFLOSS_HOST_DEVICE Rounded<Real> loss_and_remainder(Real chosen, Real rejected, Real margin, Real target) const {
    return pair_loss(logit(chosen, rejected, margin), smoothed(target));
  }

  PREFLOSS_HOST_DEVICE Real loss(Real chosen, Real rejected, Real margin, Real target) const {
    return loss_and_remainder(chosen, rejected, margin, target).value;
  }

  // The loss as statistics take it, with the digits that Real has no room for.
  PREFLOSS_HOST_DEVICE double exact_loss(Real chosen, Real rejected, Real margin, Real target) const {
    const Rounded<Real> loss = loss_and_remainder(chosen, rejected, margin, target);
    return static_cast<double>(loss.value) + static_cast<double>(loss.remainder);
  }

  // loss + c (a + b)^2
  PREFLOSS_HOST_DEVICE Real centered(Real loss, Real chosen, Real rejected) const {
    const Real total = chosen + rejected;
    return center == 0 ? loss : fused(center * total, total, loss);
  }

  // Weighting in float64 spares the sum a rounding a pair, and an overflow that the division would have undone.
  PREFLOSS_HOST_DEVICE static double weighted(Real weight, Real term) {
    const double w = static_cast<double>(weight);
    return w == 0 ? 0.0 : w * static_cast<double>(term);
  }

  PREFLOSS_HOST_DEVICE Real slope(Real chosen, Real rejected, Real margin, Real target) const {
    return pair_derivatives(logit(chosen, rejected, margin), smoothed(target)).slope;
  }

  // The second derivative of a pair's loss + c (a + b)^2 by either reward: beta^2 sigma(z) sigma(-z) + 2c. In float64,
  // in which the square of any float32 is a number.
  PREFLOSS_HOST_DEVICE double curvature(Real pair_curvature) const {
    const double its_beta = static_cast<double>(beta);
    return its_beta * (its_beta * static_cast<double>(pair_curvature)) + 2 * static_cast<double>(center);
  }

  // `scale`: the upstream gradient over the divisor.
  PREFLOSS_HOST_DEVICE PairGradient<Real> gradient(Real chosen, Real rejected, Real margin, Real weight, Real target,
                                                   const Scale<Real>& scale) const {
    return gradient(slope(chosen, rejected, margin, target), chosen, rejected, weight, scale);
  }

  PREFLOSS_HOST_DEVICE PairGradient<Real> gradient(Real slope, Real chosen, Real rejected, Real weight,
                                                   const Scale<Real>& scale) const {
    const Real pull = center == 0 ? Real(0) : 2 * center * (chosen + rejected);
    const bool counted = weight != 0;
    return {counted ? scale.times(weight, fused(beta, slope, pull)) : Real(0),
            counted ? scale.times(weight, fused(-beta, slope, pull)) : Real(0),
            counted ? scale.times(weight, -slope) : Real(0)};
  }

  // With v the direction given for each gradient, s the slope and h the curvature, dz = beta (v_chosen - v_rejected) -
  // v_margin the direction that reaches z, and u = v_chosen + v_rejected the one that reaches a + b: d/dg = (w / D) (s
  // dz + 2c (a + b) u), and so on.
  PREFLOSS_HOST_DEVICE PairSecond<Real> second(Real chosen, Real rejected, Real margin, Real weight, Real target,
                                               const Scale<Real>& scale, const Scale<Real>& inverse_divisor,
                                               Real towards_chosen, Real towards_rejected, Real towards_margin) const {
    const PairDerivatives<Real> pair = pair_derivatives(logit(chosen, rejected, margin), smoothed(target));
    const Real dz = fused(beta, towards_chosen - towards_rejected, -towards_margin);
    const Real pull = center == 0 ? Real(0) : 2 * center * (towards_chosen + towards_rejected);
    const Real along = center == 0 ? pair.slope * dz : fused(pair.slope, dz, pull * (chosen + rejected));
    const Real bend = pair.curvature * dz;
    const bool counted = weight != 0;
    return {counted ? inverse_divisor.times(weight, along) : Real(0),
            {counted ? scale.times(weight, fused(beta, bend, pull)) : Real(0),
             counted ? scale.times(weight, fused(-beta, bend, pull)) : Real(0),
             counted ? scale.times(weight, -bend) : Real(0)}};
  }
};

}  // namespace
}  // namespace prefloss
