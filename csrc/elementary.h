// exp(-a) and log(1 + f) as branch-free polynomials: a compiler can vectorise a loop over them, and they run unchanged
// on a GPU.
//
// Everything here has internal linkage: the header is compiled once per instruction set, and the linker must never mix
// those.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace prefloss {
namespace {

// a * b + c in one rounding where the hardware has it. Elsewhere in two: std::fma would call a library routine, ten
// times slower.
template <typename Real>
PREFLOSS_HOST_DEVICE Real fused(Real a, Real b, Real c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  if constexpr (sizeof(Real) == sizeof(float))
    return __builtin_fmaf(a, b, c);
  else
    return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

PREFLOSS_HOST_DEVICE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PREFLOSS_HOST_DEVICE double from_bits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PREFLOSS_HOST_DEVICE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

PREFLOSS_HOST_DEVICE uint64_t to_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// On a GPU a part of the instruction that takes it.
PREFLOSS_HOST_DEVICE float absolute(float x) {
#if defined(__CUDA_ARCH__)
  return fabsf(x);
#else
  return from_bits(to_bits(x) & 0x7fffffffu);
#endif
}

PREFLOSS_HOST_DEVICE double absolute(double x) {
#if defined(__CUDA_ARCH__)
  return fabs(x);
#else
  return from_bits(to_bits(x) & uint64_t{0x7fffffffffffffff});
#endif
}

// max(-x, 0) for any x but NaN. On a CPU without a comparison: its magnitude where its sign is set.
PREFLOSS_HOST_DEVICE float negative_part(float x) {
#if defined(__CUDA_ARCH__)
  return fmaxf(-x, 0.0f);
#else
  const uint32_t bits = to_bits(x), sign = bits >> 31;
  return from_bits(bits & 0x7fffffffu & (0u - sign));
#endif
}

PREFLOSS_HOST_DEVICE double negative_part(double x) {
  const uint64_t bits = to_bits(x), sign = bits >> 63;
  return from_bits(bits & uint64_t{0x7fffffffffffffff} & (uint64_t{0} - sign));
}

// Two floats. What is done to both is one instruction on a GPU that has such, of compute capability 10, else one for
// each.
struct TwoFloats {
  float first, second;

  TwoFloats() = default;
  PREFLOSS_HOST_DEVICE explicit TwoFloats(float both) : first(both), second(both) {}
  PREFLOSS_HOST_DEVICE TwoFloats(float a, float b) : first(a), second(b) {}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1200
  PREFLOSS_HOST_DEVICE TwoFloats(float2 both) : first(both.x), second(both.y) {}
  PREFLOSS_HOST_DEVICE operator float2() const { return make_float2(first, second); }
#endif
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1200
PREFLOSS_HOST_DEVICE TwoFloats fused(TwoFloats a, TwoFloats b, TwoFloats c) { return __ffma2_rn(a, b, c); }
PREFLOSS_HOST_DEVICE TwoFloats operator*(TwoFloats a, TwoFloats b) { return __fmul2_rn(a, b); }
PREFLOSS_HOST_DEVICE TwoFloats operator+(TwoFloats a, TwoFloats b) { return __fadd2_rn(a, b); }
#else
PREFLOSS_HOST_DEVICE TwoFloats fused(TwoFloats a, TwoFloats b, TwoFloats c) {
  return {fused(a.first, b.first, c.first), fused(a.second, b.second, c.second)};
}
PREFLOSS_HOST_DEVICE TwoFloats operator*(TwoFloats a, TwoFloats b) { return {a.first * b.first, a.second * b.second}; }
PREFLOSS_HOST_DEVICE TwoFloats operator+(TwoFloats a, TwoFloats b) { return {a.first + b.first, a.second + b.second}; }
#endif
PREFLOSS_HOST_DEVICE TwoFloats operator-(TwoFloats a) { return {-a.first, -a.second}; }
PREFLOSS_HOST_DEVICE TwoFloats operator-(TwoFloats a, TwoFloats b) { return a + -b; }

// A value and what its last rounding dropped, on the same scale.
template <typename Real>
struct Rounded {
  Real value, remainder;
};

// exp(-x) as 2^n (sum + low): -x = n log 2 + r with |r| <= log(2) / 2, exp(r) = 1 + r + r^2 P(r), all in s = -r, which
// spares a negation. The lowest bits of `shifted` are those of n.
//  - Adding 1.5 * 2^23 (2^52) rounds to an integer without a float-to-int conversion, which is undefined on NaN.
//  - `low`, what rounding dropped from `sum`: (sum - 1) + s is exact, so only the product's own rounding is lost.
template <typename Real>
struct ReducedExponential {
  Real sum, low, shifted;
};

// Of a float, or of TwoFloats.
template <typename Floats>
PREFLOSS_HOST_DEVICE ReducedExponential<Floats> reduced_exponential(Floats x) {
  const Floats shifted = fused(x, Floats(-1.44269504088896341f), Floats(0x1.8p23f)), n = shifted - Floats(0x1.8p23f);
  const Floats s = fused(n, Floats(1.42860682030941723212e-6f), fused(n, Floats(0.693145751953125f), x)), r2 = s * s;
  const Floats p = fused(fused(Floats(0x1.6a23ccp-10f), r2, fused(Floats(-0x1.123a20p-7f), s, Floats(0x1.5558f2p-5f))),
                         r2, fused(Floats(-0x1.555492p-3f), s, Floats(0x1.fffffcp-2f)));
  const Floats sum = Floats(1.0f) + fused(p, r2, -s), low = fused(p, r2, -((sum - Floats(1.0f)) + s));
  return {sum, low, shifted};
}

PREFLOSS_HOST_DEVICE ReducedExponential<double> reduced_exponential(double x) {
  const double shifted = fused(x, -1.44269504088896340736, 0x1.8p52), n = shifted - 0x1.8p52;
  // log 2 in two parts; the upper one has 33 bits, so that n * upper is exact without FMA too (n has 11).
  const double s = fused(n, 0x1.a39ef35793c76p-33, fused(n, 0x1.62e42feep-1, x)), r2 = s * s, r4 = r2 * r2;
  const double p0 =
      fused(fused(-0x1.11111111100dcp-7, s, 0x1.5555555555556p-5), r2, fused(-0x1.5555555555557p-3, s, 0x1p-1));
  const double p1 = fused(fused(-0x1.71de0231960ebp-19, s, 0x1.a01a01a6d889cp-16), r2,
                          fused(-0x1.a01a01abe7fe1p-13, s, 0x1.6c16c16c162d4p-10));
  const double p2 = fused(0x1.1f730349868cep-29, r2, fused(-0x1.af4de97ca4194p-26, s, 0x1.27e4db646b17ep-22));
  const double p = fused(fused(p2, r4, p1), r4, p0);
  const double sum = 1.0 + fused(p, r2, -s), low = fused(p, r2, -((sum - 1.0) + s));
  return {sum, low, shifted};
}

// What exp(-a) takes of each float: a at most 104, and 2^(n + 64).
PREFLOSS_HOST_DEVICE float at_most_104(float a) { return 104.0f < a ? 104.0f : a; }  // false for NaN, which goes on
PREFLOSS_HOST_DEVICE TwoFloats at_most_104(TwoFloats a) { return {at_most_104(a.first), at_most_104(a.second)}; }
PREFLOSS_HOST_DEVICE float scale_of(float shifted) { return from_bits((to_bits(shifted) + 191u) << 23); }
PREFLOSS_HOST_DEVICE TwoFloats scale_of(TwoFloats shifted) {
  return {scale_of(shifted.first), scale_of(shifted.second)};
}

// exp(-a) for a >= 0. The scale is 2^(n + 64) (2^(n + 128)), so that the last product alone rounds, in the subnormal
// tail too. Of a float, or of TwoFloats.
template <typename Floats>
PREFLOSS_HOST_DEVICE Rounded<Floats> exp_negative(Floats a) {
  const ReducedExponential<Floats> e = reduced_exponential(at_most_104(a));
  const Floats scale = scale_of(e.shifted);
  return {(e.sum * scale) * Floats(0x1p-64f), (e.low * scale) * Floats(0x1p-64f)};
}

PREFLOSS_HOST_DEVICE Rounded<double> exp_negative(double a) {
  const ReducedExponential<double> e = reduced_exponential(746.0 < a ? 746.0 : a);
  const double scale = from_bits((to_bits(e.shifted) + 1151u) << 52);
  return {(e.sum * scale) * 0x1p-128, (e.low * scale) * 0x1p-128};
}

// How exact a result is: to the last digits of float, or to those of a half-precision type that it is rounded to.
enum class Digits { kFloat, kHalf };

// exp(-x) for |x| <= kModerate, of either sign: far from the ends of the exponent, so that n is simply added to it. For
// kHalf a polynomial with two terms less, whose relative error is at most 2^-17.5, and one constant for log 2.
constexpr int kModerate = 16;

template <Digits kDigits>
PREFLOSS_HOST_DEVICE float exp_moderate(float x) {
  ReducedExponential<float> e;
  if constexpr (kDigits == Digits::kFloat) {
    e = reduced_exponential(x);
  } else {
    e.shifted = fused(x, -1.44269504088896341f, 0x1.8p23f);
    const float s = fused(e.shifted - 0x1.8p23f, 0.693147180559945309f, x);
    e.sum = fused(fused(fused(0x1.52258ep-5f, s, -0x1.571cc2p-3f), s, 0x1.0006b6p-1f), s * s, 1.0f - s);
  }
  return from_bits(to_bits(e.sum) + (to_bits(e.shifted) << 23));
}

// log(1 + f) - f + f_low for f in [-1/4, 1/2]. float: -f^2 Q(f).
PREFLOSS_HOST_DEVICE float log1p_minus(float f, float f_low) {
  const float f2 = f * f, f4 = f2 * f2;
  const float upper =
      fused(fused(fused(fused(0x1.4f5028p-5f, f, -0x1.9a219ap-4f), f, 0x1.0c1004p-3f), f2,
                  fused(-0x1.29cfcep-3f, f, 0x1.554b0ep-3f)),
            f4, fused(fused(-0x1.995acap-3f, f, 0x1.fffbb0p-3f), f2, fused(-0x1.5555c0p-2f, f, 0x1.000004p-1f)));
  return fused(-f2, upper, f_low);
}

// double: with s = f / (2 + f), log(1 + f) = 2 atanh(s) = 2s + s^3 R(s^2), and 2s = f - f^2/2 + s f^2/2.
PREFLOSS_HOST_DEVICE double log1p_minus(double f, double f_low) {
  const double s = f / (2.0 + f), s2 = s * s, s4 = s2 * s2, half_f2 = 0.5 * f * f;
  const double odd = fused(fused(fused(0x1.0e88ea4725d3dp-3, s4, 0x1.745cab2727663p-3), s4, 0x1.24924923dba6ap-2), s4,
                           0x1.5555555555555p-1);
  const double even = fused(fused(fused(0x1.16b68338bd78bp-3, s4, 0x1.3b29fcbbce66dp-3), s4, 0x1.c71c72e2f78d5p-3), s4,
                            0x1.9999999999f30p-2);
  const double ratio = s2 * fused(even, s2, odd);
  return fused(s, half_f2 + ratio, f_low) - half_f2;
}

// log(1 + u) for u >= 0: 1 + u = 2^k (1 + f) with f in [-1/4, 1/2).
PREFLOSS_HOST_DEVICE double log1p_positive(double u) {
  const double m = 1.0 + u,
               low = u < 1.0 ? u - (m - 1.0) : 1.0 - (m - u);  // m + low is 1 + u exactly; NaN goes on in low
  const uint64_t k = (to_bits(m) - to_bits(0.75)) >> 52;
  const double f = from_bits(to_bits(m) - (k << 52)) - 1.0, f_low = low * from_bits((uint64_t{1023} - k) << 52);
  const double exponent = from_bits(k | 0x4330000000000000u) - 0x1p52;
  return fused(exponent, 0x1.62e42feep-1, f + (log1p_minus(f, f_low) + exponent * 0x1.a39ef35793c76p-33));
}

}  // namespace
}  // namespace prefloss
