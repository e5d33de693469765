// The default loss, -log sigma(a - b), over one chunk of pairs. Compiled once per instruction set, so everything here
// has internal linkage.
//
// Most differences are moderate, and for a block of such ones the formulas are shorter; the others' blocks take the
// long way, which is right for any number.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "../pair_math.h"
#include "../sums.h"
#include "blocks.h"

namespace prefloss::cpu {
namespace {

// a - b of contiguous entries, in an order that `store_gradients` knows too.
template <typename Stored, typename Real>
void subtract_all(const Stored* chosen, const Stored* rejected, int count, Real* difference) {
  for (int i = 0; i < count; i++) difference[i] = widen(chosen[i]) - widen(rejected[i]);
}

// Gradients of contiguous entries, rounded; rejected's is chosen's with the other sign.
template <typename Half>
void store_gradients(const float* gradient, int count, Half* chosen, Half* __restrict rejected) {
  narrow_all(gradient, count, chosen);
  for (int i = 0; i < count; i++) rejected[i].bits = opposite(chosen[i].bits);
}

// Two neighbours in bfloat16 are the halves of a word, and each half as a float is one operation, where a conversion
// of 16 bits to 32 is two. The lower halves of all words come first, then the upper halves, then what is left of an odd
// count.
inline uint32_t word_of(const BFloat16* two) {
  uint32_t word;
  std::memcpy(&word, two, sizeof word);
  return word;
}

constexpr uint32_t kUpperHalf = 0xffff0000u;

inline void subtract_all(const BFloat16* chosen, const BFloat16* rejected, int count, float* __restrict difference) {
  const int words = count / 2;
  for (int i = 0; i < words; i++) {
    const uint32_t a = word_of(chosen + 2 * i), b = word_of(rejected + 2 * i);
    difference[i] = from_bits(a << 16) - from_bits(b << 16);
    difference[words + i] = from_bits(a & kUpperHalf) - from_bits(b & kUpperHalf);
  }
  if (count % 2 != 0) difference[count - 1] = widen(chosen[count - 1]) - widen(rejected[count - 1]);
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

#ifdef PREFLOSS_F16C
inline void subtract_all(const Float16* chosen, const Float16* rejected, int count, float* difference) {
  int i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(difference + i, _mm256_sub_ps(eight_floats(chosen + i), eight_floats(rejected + i)));
  for (; i < count; i++) difference[i] = widen(chosen[i]) - widen(rejected[i]);
}
#endif

// a - b of a block of pairs.
template <typename Real>
class Differences {
 public:
  // `in_order`: for others than `store_gradients`.
  explicit Differences(const Pairs& pairs, bool in_order = false) : pairs_(pairs), in_order_(in_order) {}

  void load(int64_t row, int64_t begin, int count) {
    if (!load_in_place<Real>(row, begin, count) &&
        (in_order_ || (!load_in_place<BFloat16>(row, begin, count) && !load_in_place<Float16>(row, begin, count)))) {
      const Real* chosen = cpu::load(pairs_.chosen, row, begin, count, chosen_);
      const Real* rejected = cpu::load(pairs_.rejected, row, begin, count, rejected_);
      subtract_all(chosen, rejected, count, values);
    }
    if constexpr (sizeof(Real) == sizeof(float)) {
      int32_t most = 0;  // as integers, which order NaN behind infinity
#pragma omp simd reduction(max : most)
      for (int i = 0; i < count; i++) {
        const int32_t bits = static_cast<int32_t>(to_bits(absolute(values[i])));
        most = bits > most ? bits : most;
      }
      greatest_ = from_bits(static_cast<uint32_t>(most));
    }
  }

  // Whether all are; never those of float64, which have no shorter formulas.
  bool are_moderate() const { return greatest_ <= kModerate; }
  double greatest() const { return static_cast<double>(greatest_); }

  alignas(64) Real values[kBlock];

 private:
  const Pairs& pairs_;
  const bool in_order_;
  float greatest_ = std::numeric_limits<float>::infinity();  // magnitude
  Buffer<Real> chosen_, rejected_;

  template <typename Stored>
  bool load_in_place(int64_t row, int64_t begin, int count) {
    if constexpr (sizeof(Stored) <= sizeof(Real)) {
      if (!is_in_place<Stored>(pairs_.chosen) || !is_in_place<Stored>(pairs_.rejected)) return false;
      subtract_all(pairs_.chosen.entry<Stored>(row, begin), pairs_.rejected.entry<Stored>(row, begin), count, values);
      return true;
    }
    return false;
  }
};

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

constexpr int kLanes = 32;

// Calls add(lane, value): value i of a block goes to lane i % kLanes.
template <typename Real, typename Add>
void for_lanes(const Real* values, int count, const Add& add) {
  const int whole = count - count % kLanes;
  for (int i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; lane++) add(lane, values[i + lane]);
  }
  for (int lane = 0; lane < count - whole; lane++) add(lane, values[whole + lane]);
}

// Adds up losses of moderate differences in kLanes products. The variables that the loop changes are its own, which the
// compiler keeps in registers.
class ModerateLosses {
  using Product = ModerateLossProduct;

 public:
  ModerateLosses() { start(); }

  void add(const Differences<float>& differences, int count) {
    const double most = (count + kLanes - 1) / kLanes * Product::most(differences.greatest());
    if (logarithm_ + most > Product::kGreatestLogarithm) take_logarithms();
    logarithm_ += most;
    alignas(64) double product[kLanes];
    std::copy_n(product_, kLanes, product);
    const auto add_to = [&](int lane, float z) {
      Product its{product[lane]};
      its.add(z);
      product[lane] = its.product;
    };
    for_lanes(differences.values, count, add_to);
    std::copy_n(product, kLanes, product_);
  }

  double total() {
    if (logarithm_ > 0) take_logarithms();
    return terms_;
  }

 private:
  static_assert(kBlock % kLanes == 0 && kBlock / kLanes * (kModerate + Product::kLog2) < Product::kGreatestLogarithm);
  alignas(64) double product_[kLanes];
  double terms_ = 0, logarithm_ = 0;  // no product's is greater

  void start() {
    std::fill_n(product_, kLanes, 1.0);
    logarithm_ = 0;
  }

  void take_logarithms() {
    terms_ += sum(kLanes, [&](int lane) { return Product{product_[lane]}.value(); });
    start();
  }
};

// Adds up losses of any differences.
template <typename Real>
class AllLosses {
 public:
  void add(const Differences<Real>& differences, int count) {
    any_ = true;
    const auto add_to = [&](int lane, Real z) {
      PairLossSum sum{product_[lane], hinge_[lane]};
      sum.add(z);
      product_[lane] = sum.u;
      hinge_[lane] = sum.hinge;
    };
    for_lanes(differences.values, count, add_to);
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
  Differences<Real> differences(pairs);
  ModerateLosses moderate;
  AllLosses<Real> others;
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    differences.load(row, begin, count);
    if constexpr (sizeof(Real) == sizeof(float)) {
      if (differences.are_moderate()) return moderate.add(differences, count);
    }
    others.add(differences, count);
  });
  Partial partial = Partial::zero();
  partial.terms = moderate.total() + others.total();
  return partial;
}

// From differences to the gradients of chosen.
inline void to_gradients(bool moderate, float scale, int count, float* values) {
  if (moderate) {
    for (int i = 0; i < count; i++) values[i] = moderate_slope(values[i], scale);
  } else {
    for (int i = 0; i < count; i++) values[i] = scale * pair_slope(values[i]);
  }
}

template <typename Half>
bool are_contiguous(const Pairs& pairs, const Gradients& gradients) {
  return is_in_place<Half>(pairs.chosen) && is_in_place<Half>(pairs.rejected) && is_in_place<Half>(gradients.chosen) &&
         is_in_place<Half>(gradients.rejected);
}

// The gradients of half-precision rewards.
template <typename Half>
void half_backward(const Pairs& pairs, float scale, const Gradients& gradients, int64_t row, int64_t chunk) {
  const bool contiguous = are_contiguous<Half>(pairs, gradients);
  Differences<float> differences(pairs, !contiguous);
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    differences.load(row, begin, count);
    float* const slopes = differences.values;
    to_gradients(differences.are_moderate(), scale, count, slopes);
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
  Buffer<Real> chosen_buffer, rejected_buffer, chosen_result, rejected_result;
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    Real* __restrict grad_chosen = result(gradients.chosen, row, begin, chosen_result);
    Real* __restrict grad_rejected = result(gradients.rejected, row, begin, rejected_result);
    for (int i = 0; i < count; i++) {
      const Real slope = scale * pair_slope(chosen[i] - rejected[i]);
      grad_chosen[i] = slope;
      grad_rejected[i] = -slope;
    }
    store(gradients.chosen, row, begin, count, chosen_result);
    store(gradients.rejected, row, begin, count, rejected_result);
  });
}

}  // namespace
}  // namespace prefloss::cpu
