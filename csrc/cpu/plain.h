// The default loss, -log sigma(a - b), over one chunk of pairs. Compiled once per instruction set, so everything here
// has internal linkage.
//
// Most differences are moderate, and for those the formulas are shorter. A block is tried the short way, which finds
// whether its differences are moderate. If one is not, this block and the rest of the chunk go the long way, which is
// right for any number.
#pragma once

#include <algorithm>
#include <cstring>

#include "../pair_math.h"
#include "../sums.h"
#include "blocks.h"

namespace prefloss::cpu {
namespace {

// Two neighbours in bfloat16 are the halves of a word, and each half as a float is one operation, where a conversion
// of 16 bits to 32 is two.
inline uint32_t word_of(const BFloat16* two) {
  uint32_t word;
  std::memcpy(&word, two, sizeof word);
  return word;
}

constexpr uint32_t kUpperHalf = 0xffff0000u;

inline TwoFloats difference_of_two(const BFloat16* chosen, const BFloat16* rejected) {
  const uint32_t a = word_of(chosen), b = word_of(rejected);
  return {from_bits(a << 16) - from_bits(b << 16), from_bits(a & kUpperHalf) - from_bits(b & kUpperHalf)};
}

// a - b of contiguous entries, in an order that `store_gradients` knows too. That of bfloat16: the lower halves of all
// words come first, then the upper halves, then what is left of an odd count.
template <typename Stored>
void subtract_all(const Stored* chosen, const Stored* rejected, int count, float* difference) {
  for (int i = 0; i < count; i++) difference[i] = widen(chosen[i]) - widen(rejected[i]);
}

inline void subtract_all(const BFloat16* chosen, const BFloat16* rejected, int count, float* __restrict difference) {
  const int words = count / 2;
  for (int i = 0; i < words; i++) {
    const TwoFloats two = difference_of_two(chosen + 2 * i, rejected + 2 * i);
    difference[i] = two.first;
    difference[words + i] = two.second;
  }
  if (count % 2 != 0) difference[count - 1] = widen(chosen[count - 1]) - widen(rejected[count - 1]);
}

#ifdef PREFLOSS_F16C
inline void subtract_all(const Float16* chosen, const Float16* rejected, int count, float* difference) {
  int i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(difference + i, _mm256_sub_ps(eight_floats(chosen + i), eight_floats(rejected + i)));
  for (; i < count; i++) difference[i] = widen(chosen[i]) - widen(rejected[i]);
}
#endif

// Gradients of contiguous entries, rounded; rejected's is chosen's with the other sign.
template <typename Half>
void store_gradients(const float* gradient, int count, Half* chosen, Half* __restrict rejected) {
  narrow_all(gradient, count, chosen);
  for (int i = 0; i < count; i++) rejected[i].bits = opposite(chosen[i].bits);
}

inline void store_gradients(const float* gradient, int count, BFloat16* __restrict chosen,
                            BFloat16* __restrict rejected) {
  const int words = count / 2;
  for (int i = 0; i < words; i++) {
    const uint32_t word =
        rounded_to_bfloat16(gradient[i]) >> 16 | (rounded_to_bfloat16(gradient[words + i]) & kUpperHalf);
    const uint32_t opposite_word = word ^ 0x80008000u;
    std::memcpy(chosen + 2 * i, &word, sizeof word);
    std::memcpy(rejected + 2 * i, &opposite_word, sizeof word);
  }
  if (count % 2 != 0) {
    narrow(gradient[count - 1], chosen[count - 1]);
    rejected[count - 1].bits = opposite(chosen[count - 1].bits);
  }
}

// The greatest magnitude of differences, as an integer: those order NaN behind infinity.
inline int32_t greater_magnitude(int32_t greatest, float z) {
  const int32_t bits = static_cast<int32_t>(to_bits(absolute(z)));
  return bits > greatest ? bits : greatest;
}

inline bool is_moderate(int32_t greatest) { return from_bits(static_cast<uint32_t>(greatest)) <= kModerate; }

// The terms of the default loss, one a pair.
template <typename Real>
void plain_terms(const Pairs& pairs, const Column& terms, int64_t row, int64_t chunk) {
  Buffer<Real> chosen_buffer, rejected_buffer, loss;
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    for (int i = 0; i < count; i++) loss.values[i] = pair_loss(chosen[i] - rejected[i]);
    scatter(loss.values, count, terms.stride, terms.entry<Real>(row, begin));
  });
}

// Whether both are contiguous, and stored as `Stored`.
template <typename Stored>
bool are_in_place(const Pairs& pairs) {
  return is_in_place<Stored>(pairs.chosen) && is_in_place<Stored>(pairs.rejected);
}

constexpr int kLanes = 32;

// Calls add(lane, z, w) for two differences, entries i and i + kLanes of 2 kLanes neighbours, or add(lane, z) for one
// that is left, in any dtype.
template <typename Difference, typename Add>
void for_lanes(int count, const Difference& difference, Add& add) {
  const int whole = count - count % (2 * kLanes);
  for (int i = 0; i < whole; i += 2 * kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; lane++) add(lane, difference(i + lane), difference(i + kLanes + lane));
  }
  for (int i = whole; i < count; i += kLanes) {
    const int some = std::min(kLanes, count - i);
    for (int lane = 0; lane < some; lane++) add(lane, difference(i + lane));
  }
}

template <typename Stored, typename Add>
void for_differences(const Stored* chosen, const Stored* rejected, int count, Add& add) {
  for_lanes(count, [=](int i) { return widen(chosen[i]) - widen(rejected[i]); }, add);
}

template <typename Add>
void for_differences(const BFloat16* chosen, const BFloat16* rejected, int count, Add& add) {
  const int whole = count - count % (2 * kLanes);
  for (int i = 0; i < whole; i += 2 * kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes / 2; lane++) {
      const int first = i + 2 * lane, second = first + kLanes;
      const TwoFloats z = difference_of_two(chosen + first, rejected + first);
      const TwoFloats w = difference_of_two(chosen + second, rejected + second);
      add(lane, z.first, w.first);
      add(kLanes / 2 + lane, z.second, w.second);
    }
  }
  for_lanes(count - whole, [=](int i) { return widen(chosen[whole + i]) - widen(rejected[whole + i]); }, add);
}

#ifdef PREFLOSS_F16C
template <typename Add>
void for_differences(const Float16* chosen, const Float16* rejected, int count, Add& add) {
  Buffer<float> difference;
  subtract_all(chosen, rejected, count, difference.values);
  for_lanes(count, [&](int i) { return difference.values[i]; }, add);
}
#endif

// Adds up losses of moderate differences in kLanes products.
class ModerateLosses {
  using Product = ModerateLossProduct;

 public:
  ModerateLosses() { std::fill_n(product_, kLanes, 1.0); }

  // Adds a block of differences; if one is not moderate, none of them, and returns false. The variables that the loop
  // changes are its own: the compiler keeps them in registers.
  template <typename Stored>
  bool add(const Stored* chosen, const Stored* rejected, int count) {
    Lanes lanes;
    std::copy_n(product_, kLanes, lanes.product);
    for_differences(chosen, rejected, count, lanes);
    int32_t greatest = 0;
    for (int lane = 0; lane < kLanes; lane++) greatest = std::max(greatest, lanes.greatest[lane]);
    if (!is_moderate(greatest)) return false;
    any_ = true;
    for (int lane = 0; lane < kLanes; lane++) {
      Product its{lanes.product[lane]};
      exponents_ += its.take_exponent();
      product_[lane] = its.product;
    }
    return true;
  }

  double total() const {
    if (!any_) return 0.0;
    return Product::logarithm(exponents_) + sum(kLanes, [&](int lane) { return Product{product_[lane]}.value(); });
  }

 private:
  static_assert(kBlock / kLanes <= Product::kMost);
  bool any_ = false;
  alignas(64) double product_[kLanes];
  int64_t exponents_ = 0;

  struct Lanes {
    alignas(64) double product[kLanes];
    alignas(64) int32_t greatest[kLanes] = {};

    void operator()(int lane, float z) {
      greatest[lane] = greater_magnitude(greatest[lane], z);
      Product its{product[lane]};
      its.add(z);
      product[lane] = its.product;
    }

    void operator()(int lane, float z, float w) {
      greatest[lane] = greater_magnitude(greater_magnitude(greatest[lane], z), w);
      Product its{product[lane]};
      its.add(z, w);
      product[lane] = its.product;
    }
  };
};

// Adds up losses of any differences.
template <typename Real>
class AllLosses {
 public:
  template <typename Stored>
  void add(const Stored* chosen, const Stored* rejected, int count) {
    any_ = true;
    for_differences(chosen, rejected, count, *this);
  }

  void operator()(int lane, Real z) {
    PairLossSum sum{product_[lane], hinge_[lane]};
    sum.add(z);
    product_[lane] = sum.u;
    hinge_[lane] = sum.hinge;
  }

  void operator()(int lane, Real z, Real w) {
    operator()(lane, z);
    operator()(lane, w);
  }

  double total() const {
    return any_ ? sum(kLanes, [&](int lane) { return PairLossSum{product_[lane], hinge_[lane]}.value(); }) : 0.0;
  }

 private:
  static_assert(kChunk / kLanes <= PairLossSum::kMost);
  bool any_ = false;
  alignas(64) double product_[kLanes] = {}, hinge_[kLanes] = {};
};

template <typename Real>
Partial plain_sum(const Pairs& pairs, int64_t row, int64_t chunk) {
  ModerateLosses moderate;
  AllLosses<Real> others;
  [[maybe_unused]] bool short_way = true;
  const auto add = [&](const auto* chosen, const auto* rejected, int count) {
    if constexpr (sizeof(Real) == sizeof(float)) {
      short_way = short_way && moderate.add(chosen, rejected, count);
      if (short_way) return;
    }
    others.add(chosen, rejected, count);
  };
  Buffer<Real> chosen_buffer, rejected_buffer;
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    if constexpr (sizeof(Real) == sizeof(float)) {
      if (are_in_place<BFloat16>(pairs))
        return add(pairs.chosen.entry<BFloat16>(row, begin), pairs.rejected.entry<BFloat16>(row, begin), count);
      if (are_in_place<Float16>(pairs))
        return add(pairs.chosen.entry<Float16>(row, begin), pairs.rejected.entry<Float16>(row, begin), count);
    }
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    add(chosen, load(pairs.rejected, row, begin, count, rejected_buffer), count);
  });
  Partial partial = Partial::zero();
  partial.terms = moderate.total() + others.total();
  return partial;
}

// From differences to the gradients of chosen, the short way, which returns whether all differences are moderate.
inline bool to_moderate_gradients(const float* difference, float scale, int count, float* __restrict gradient) {
  int32_t greatest = 0;
#pragma omp simd reduction(max : greatest)
  for (int i = 0; i < count; i++) {
    const float z = difference[i];
    greatest = greater_magnitude(greatest, z);
    gradient[i] = moderate_slope(z, scale);
  }
  return is_moderate(greatest);
}

// The long way.
inline void to_gradients(const float* difference, float scale, int count, float* __restrict gradient) {
  for (int i = 0; i < count; i++) gradient[i] = scale * pair_slope(difference[i]);
}

// The gradients of half-precision rewards.
template <typename Half>
void half_backward(const Pairs& pairs, float scale, const Gradients& gradients, int64_t row, int64_t chunk) {
  const bool contiguous =
      are_in_place<Half>(pairs) && is_in_place<Half>(gradients.chosen) && is_in_place<Half>(gradients.rejected);
  Buffer<float> chosen_buffer, rejected_buffer, difference_buffer;
  float *const difference = difference_buffer.values, *const slopes = chosen_buffer.values;
  bool short_way = true;
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    if (contiguous)
      subtract_all(pairs.chosen.entry<Half>(row, begin), pairs.rejected.entry<Half>(row, begin), count, difference);
    else
      subtract_all(load(pairs.chosen, row, begin, count, chosen_buffer),
                   load(pairs.rejected, row, begin, count, rejected_buffer), count, difference);
    short_way = short_way && to_moderate_gradients(difference, scale, count, slopes);
    if (!short_way) to_gradients(difference, scale, count, slopes);
    if (contiguous)
      return store_gradients(slopes, count, gradients.chosen.entry<Half>(row, begin),
                             gradients.rejected.entry<Half>(row, begin));
    if (gradients.chosen) write_entries(slopes, gradients.chosen, row, begin, count);
    for (int i = 0; i < count; i++) slopes[i] = -slopes[i];
    if (gradients.rejected) write_entries(slopes, gradients.rejected, row, begin, count);
  });
}

template <typename Real>
void plain_backward(const Pairs& pairs, Real scale, const Gradients& gradients, int64_t row, int64_t chunk) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    const Dtype dtype = pairs.chosen.dtype;
    if (dtype == Dtype::kBFloat16) return half_backward<BFloat16>(pairs, scale, gradients, row, chunk);
    if (dtype == Dtype::kFloat16) return half_backward<Float16>(pairs, scale, gradients, row, chunk);
  }
  Buffer<Real> chosen_buffer, rejected_buffer, exponential, remainder, chosen_result, rejected_result;
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    Real* __restrict grad_chosen = result(gradients.chosen, row, begin, chosen_result);
    Real* __restrict grad_rejected = result(gradients.rejected, row, begin, rejected_result);
    // Two loops: a processor does more at a time of short chains of operations than of long ones.
    for (int i = 0; i < count; i++) {
      const Rounded<Real> e = exp_negative(absolute(chosen[i] - rejected[i]));
      exponential.values[i] = e.value;
      remainder.values[i] = e.remainder;
    }
    for (int i = 0; i < count; i++) {
      const Real slope = scale * pair_slope(chosen[i] - rejected[i], {exponential.values[i], remainder.values[i]});
      grad_chosen[i] = slope;
      grad_rejected[i] = -slope;
    }
    store(gradients.chosen, row, begin, count, chosen_result);
    store(gradients.rejected, row, begin, count, rejected_result);
  });
}

}  // namespace
}  // namespace prefloss::cpu
