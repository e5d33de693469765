// How rewards are stored, and the conversions to and from the type that they are computed in. A GPU has instructions
// for them. On a CPU integer arithmetic alone, branch-free: exact on every instruction set, whether or not it knows
// half precision, and whether or not subnormals are flushed.
#pragma once

#include "elementary.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace prefloss {
namespace {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

PREFLOSS_HOST_DEVICE float widen(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

PREFLOSS_HOST_DEVICE float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t magnitude = x.bits & 0x7fffu, sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rebias = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;  // infinity and NaN keep the full exponent
  const uint32_t normal = (magnitude << 13) + rebias;
  const uint32_t subnormal = to_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return from_bits(sign | (magnitude < 0x0400u ? subnormal : normal));
#endif
}

PREFLOSS_HOST_DEVICE float widen(float x) { return x; }
PREFLOSS_HOST_DEVICE double widen(double x) { return x; }
PREFLOSS_HOST_DEVICE float widen(bool x) { return x ? 1.0f : 0.0f; }

// Round to nearest, ties to even; NaN stays NaN. The upper half of these bits is the bfloat16.
PREFLOSS_HOST_DEVICE uint32_t rounded_to_bfloat16(float x) {
  const uint32_t bits = to_bits(x);
  return x != x ? 0x7fc00000u : bits + 0x7fffu + ((bits >> 16) & 1u);
}

PREFLOSS_HOST_DEVICE void narrow(float x, BFloat16& stored) {
#if defined(__CUDA_ARCH__)
  stored.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  stored.bits = static_cast<uint16_t>(rounded_to_bfloat16(x) >> 16);
#endif
}

PREFLOSS_HOST_DEVICE void narrow(float x, Float16& stored) {
#if defined(__CUDA_ARCH__)
  stored.bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t bits = to_bits(x), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  const uint32_t rounded = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t normal = rounded > 0x7c00u ? 0x7c00u : rounded;                  // past 65519.99 is infinity
  const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds at 2^-24
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  stored.bits = static_cast<uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : finite));
#endif
}

// The bits of -x in either format.
PREFLOSS_HOST_DEVICE uint16_t opposite(uint16_t bits) { return static_cast<uint16_t>(bits ^ 0x8000u); }

PREFLOSS_HOST_DEVICE void narrow(float x, float& stored) { stored = x; }
PREFLOSS_HOST_DEVICE void narrow(double x, double& stored) { stored = x; }
PREFLOSS_HOST_DEVICE void narrow(double x, float& stored) { stored = static_cast<float>(x); }

}  // namespace
}  // namespace prefloss
