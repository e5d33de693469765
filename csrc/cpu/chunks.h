// What is done with one chunk of pairs, whatever brings them: forward, backward, double backward. Compiled once per
// instruction set, so everything here has internal linkage.
//
// A row is cut into chunks, which threads share, and a chunk into blocks that fit in the first-level cache: a block's
// columns are brought to contiguous Real (float, or double for float64 rewards), computed in loops that the compiler
// vectorises, and written back. Partial sums are float64, one set a chunk, added in order; so the bits do not depend on
// the number of threads.
#pragma once

#include <algorithm>
#include <limits>

#include "../pair_math.h"
#include "../sums.h"
#include "columns.h"

namespace prefloss::cpu {
namespace {

constexpr int64_t kChunk = 8192;

// The sum of entry(0 ... count - 1), float64, in an order that `count` alone decides; four sums at a time hide the
// latency of an addition.
template <typename Entry>
double sum(int count, const Entry& entry) {
  const int quarter = count / 4;
  double first = 0, second = 0, third = 0, fourth = 0;
#pragma omp simd reduction(+ : first, second, third, fourth)
  for (int i = 0; i < quarter; i++) {
    first += entry(i);
    second += entry(quarter + i);
    third += entry(2 * quarter + i);
    fourth += entry(3 * quarter + i);
  }
  for (int i = 4 * quarter; i < count; i++) first += entry(i);
  return (first + second) + (third + fourth);
}

// The sums of one block. Counts of a block and extremes are exact in Real; everything else is added in float64.
template <typename Real>
void add_statistics(const Real* chosen, const Real* rejected, const Real* weight, const Real* loss, int count,
                    double* sums) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  Real n = 0, correct = 0, tied = 0, nans = 0, low = infinity, high = -infinity;
#pragma omp simd reduction(+ : n, correct, tied, nans) reduction(min : low) reduction(max : high)
  for (int i = 0; i < count; i++) {
    const bool counted = weight[i] != 0;
    const Real a = chosen[i], b = rejected[i], one = counted ? Real(1) : Real(0);
    const Real smaller = a < b ? a : b, larger = a > b ? a : b;
    n += one;
    correct += a > b ? one : Real(0);
    tied += a == b ? one : Real(0);
    nans += a != a || b != b ? one : Real(0);
    low = counted && smaller < low ? smaller : low;
    high = counted && larger > high ? larger : high;
  }
  double w2 = 0, wl = 0, w2l = 0, w2l2 = 0, d1 = 0, d2 = 0, a1 = 0, a2 = 0, b1 = 0, b2 = 0;
#pragma omp simd reduction(+ : w2, wl, w2l, w2l2, d1, d2, a1, a2, b1, b2)
  for (int i = 0; i < count; i++) {
    const bool counted = weight[i] != 0;
    const double w = weight[i], l = counted ? loss[i] : Real(0), d = counted ? chosen[i] - rejected[i] : Real(0);
    const double a = counted ? chosen[i] : Real(0), b = counted ? rejected[i] : Real(0), weighted = w * l;
    w2 += w * w;
    wl += weighted;
    w2l += w * weighted;
    w2l2 += weighted * weighted;
    d1 += d;
    d2 += d * d;
    a1 += a;
    a2 += a * a;
    b1 += b;
    b2 += b * b;
  }
  const double block[kMinimum] = {n,    0,  w2, wl, w2l, w2l2, correct,
                                  tied, d1, d2, a1, a2,  b1,   b2};  // Partial has the weight
  for (int k = 0; k < kMinimum; k++) sums[k] += block[k];
  const double nan = std::numeric_limits<double>::quiet_NaN();
  sums[kMinimum] = nans > 0 || sums[kMinimum] != sums[kMinimum] ? nan : std::min<double>(sums[kMinimum], low);
  sums[kMaximum] = nans > 0 || sums[kMaximum] != sums[kMaximum] ? nan : std::max<double>(sums[kMaximum], high);
}

int64_t chunks_of(const Pairs& pairs) { return (pairs.count + kChunk - 1) / kChunk; }

// Calls body(block_begin, block_count) for the blocks of a chunk.
template <typename Body>
void for_blocks(int64_t chunk, int64_t count, const Body& body) {
  const int64_t end = std::min(count, (chunk + 1) * kChunk);
  for (int64_t begin = chunk * kChunk; begin < end; begin += kBlock)
    body(begin, static_cast<int>(std::min<int64_t>(kBlock, end - begin)));
}

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

// Their sum. Pair i of a chunk always goes to lane i % kLanes.
template <typename Real>
Partial plain_sum(const Pairs& pairs, int64_t row, int64_t chunk) {
  constexpr int kLanes = 32;
  static_assert(kChunk / kLanes <= PairLossSum::kMost && kBlock % kLanes == 0);
  double product[kLanes] = {}, hinge[kLanes] = {};
  const auto add = [&](int lane, Real z) {
    PairLossSum sum{product[lane], hinge[lane]};
    sum.add(z);
    product[lane] = sum.u;
    hinge[lane] = sum.hinge;
  };
  Buffer<Real> chosen_buffer, rejected_buffer;
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    const int whole = count - count % kLanes;
    for (int i = 0; i < whole; i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; lane++) add(lane, chosen[i + lane] - rejected[i + lane]);
    }
    for (int lane = 0; lane < count - whole; lane++) add(lane, chosen[whole + lane] - rejected[whole + lane]);
  });
  Partial partial = Partial::zero();
  partial.terms = sum(kLanes, [&](int lane) { return PairLossSum{product[lane], hinge[lane]}.value(); });
  return partial;
}

template <typename Real>
Partial general_forward(const Pairs& pairs, const ForwardOutputs& outputs, int64_t row, int64_t chunk) {
  Partial partial = Partial::zero();
  const Formula<Real> formula(pairs.options);
  Buffer<Real> chosen_buffer, rejected_buffer, loss, centered;
  OptionalColumn<Real> margins(pairs.margin, pairs.options.margin), weights(pairs.weight, 1),
      targets(pairs.target, pairs.options.target);
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    const Real *margin = margins.load(row, begin, count), *weight = weights.load(row, begin, count),
               *target = targets.load(row, begin, count);
    for (int i = 0; i < count; i++) {
      loss.values[i] = formula.loss(chosen[i], rejected[i], margin[i], target[i]);
      centered.values[i] = formula.centered(loss.values[i], chosen[i], rejected[i]);
    }
    const auto term = [&](int i) { return Formula<Real>::weighted(weight[i], centered.values[i]); };
    partial.terms += sum(count, term);
    partial.weight += sum(count, [&](int i) { return static_cast<double>(weight[i]); });
    if (outputs.terms) {
      for (int i = 0; i < count; i++) centered.values[i] = static_cast<Real>(term(i));
      scatter(centered.values, count, outputs.terms.stride, outputs.terms.entry<Real>(row, begin));
    }
    if (outputs.statistics) add_statistics(chosen, rejected, weight, loss.values, count, partial.sums);
  });
  return partial;
}

// The sums of a chunk of a row; its terms, where they are wanted, are written.
template <typename Real>
Partial forward_chunk(const Pairs& pairs, const ForwardOutputs& outputs, int64_t row, int64_t chunk) {
  if (!pairs.plain() || outputs.statistics) return general_forward<Real>(pairs, outputs, row, chunk);
  if (!outputs.terms) return plain_sum<Real>(pairs, row, chunk);
  plain_terms<Real>(pairs, outputs.terms, row, chunk);
  return Partial::zero();
}

template <typename Real>
void plain_backward(const Pairs& pairs, Real scale, const Gradients& gradients, int64_t row, int64_t chunk) {
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

template <typename Real>
void general_backward(const Pairs& pairs, double scale, const Column& upstream, const Gradients& gradients, int64_t row,
                      int64_t chunk) {
  const Formula<Real> formula(pairs.options);
  Buffer<Real> chosen_buffer, rejected_buffer, chosen_result, rejected_result, margin_result;
  OptionalColumn<Real> margins(pairs.margin, pairs.options.margin), weights(pairs.weight, 1),
      targets(pairs.target, pairs.options.target);
  OptionalColumn<Real> scales(upstream, scale);
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    const Real *margin = margins.load(row, begin, count), *weight = weights.load(row, begin, count),
               *target = targets.load(row, begin, count);
    const Real* factor = scales.load(row, begin, count);
    Real* __restrict grad_chosen = result(gradients.chosen, row, begin, chosen_result);
    Real* __restrict grad_rejected = result(gradients.rejected, row, begin, rejected_result);
    Real* __restrict grad_margin = result(gradients.margin, row, begin, margin_result);
#pragma omp simd
    for (int i = 0; i < count; i++) {
      const PairGradient<Real> gradient =
          formula.gradient(chosen[i], rejected[i], margin[i], weight[i], target[i], factor[i]);
      grad_chosen[i] = gradient.chosen;
      grad_rejected[i] = gradient.rejected;
      grad_margin[i] = gradient.margin;
    }
    store(gradients.chosen, row, begin, count, chosen_result);
    store(gradients.rejected, row, begin, count, rejected_result);
    store(gradients.margin, row, begin, count, margin_result);
  });
}

// The gradients of a chunk of a row, times `scale`, or times the entries of `upstream` where it is given.
template <typename Real>
void backward_chunk(const Pairs& pairs, double scale, const Column& upstream, const Gradients& gradients, int64_t row,
                    int64_t chunk) {
  if (pairs.plain() && !upstream && !gradients.margin)
    plain_backward<Real>(pairs, static_cast<Real>(scale), gradients, row, chunk);
  else
    general_backward<Real>(pairs, scale, upstream, gradients, row, chunk);
}

template <typename Real>
double double_backward_chunk(const Pairs& pairs, double scale, double inverse_divisor, const Column& upstream,
                             const Gradients& directions, const Column& upstream_gradient, const Gradients& gradients,
                             int64_t row, int64_t chunk) {
  double total = 0;
  const Formula<Real> formula(pairs.options);
  const Real inverse = static_cast<Real>(inverse_divisor);
  Buffer<Real> chosen_buffer, rejected_buffer, chosen_result, rejected_result, margin_result, upstream_result;
  OptionalColumn<Real> margins(pairs.margin, pairs.options.margin), weights(pairs.weight, 1),
      targets(pairs.target, pairs.options.target);
  OptionalColumn<Real> scales(upstream, scale), towards_chosen(directions.chosen, 0),
      towards_rejected(directions.rejected, 0), towards_margin(directions.margin, 0);
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    const Real *margin = margins.load(row, begin, count), *weight = weights.load(row, begin, count),
               *target = targets.load(row, begin, count);
    const Real *factor = scales.load(row, begin, count), *v_chosen = towards_chosen.load(row, begin, count);
    const Real *v_rejected = towards_rejected.load(row, begin, count),
               *v_margin = towards_margin.load(row, begin, count);
    Real* __restrict grad_chosen = result(gradients.chosen, row, begin, chosen_result);
    Real* __restrict grad_rejected = result(gradients.rejected, row, begin, rejected_result);
    Real* __restrict grad_margin = result(gradients.margin, row, begin, margin_result);
#pragma omp simd
    for (int i = 0; i < count; i++) {
      const PairSecond<Real> second = formula.second(chosen[i], rejected[i], margin[i], weight[i], target[i], factor[i],
                                                     inverse, v_chosen[i], v_rejected[i], v_margin[i]);
      upstream_result.values[i] = second.upstream;
      grad_chosen[i] = second.gradient.chosen;
      grad_rejected[i] = second.gradient.rejected;
      grad_margin[i] = second.gradient.margin;
    }
    total += sum(count, [&](int i) { return static_cast<double>(upstream_result.values[i]); });
    if (upstream_gradient.stride != 0)
      scatter(upstream_result.values, count, upstream_gradient.stride, upstream_gradient.entry<Real>(row, begin));
    store(gradients.chosen, row, begin, count, chosen_result);
    store(gradients.rejected, row, begin, count, rejected_result);
    store(gradients.margin, row, begin, count, margin_result);
  });
  return total;
}

}  // namespace
}  // namespace prefloss::cpu
