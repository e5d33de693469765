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

#include "../sums.h"
#include "plain.h"

namespace prefloss::cpu {
namespace {

// Adds the sums of one block to those of its chunk. Counts of a block and extremes are exact in Real; everything else
// is added in float64. What numbers differ from their mean by takes a second loop, over the first-level cache.
template <typename Real>
void add_statistics(const Real* chosen, const Real* rejected, const Real* weight, const Real* loss,
                    const Real* remainder, int count, Partial& chunk) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  Real n = 0, correct = 0, tied = 0, nans = 0, low = infinity, high = -infinity, heaviest = 0;
#pragma omp simd reduction(+ : n, correct, tied, nans) reduction(min : low) reduction(max : high, heaviest)
  for (int i = 0; i < count; i++) {
    const bool counted = weight[i] != 0;
    const Real a = chosen[i], b = rejected[i], one = counted ? Real(1) : Real(0), w = absolute(weight[i]);
    const Real smaller = a < b ? a : b, larger = a > b ? a : b;
    n += one;
    correct += a > b ? one : Real(0);
    tied += a == b ? one : Real(0);
    nans += a != a || b != b ? one : Real(0);
    low = counted && smaller < low ? smaller : low;
    high = counted && larger > high ? larger : high;
    heaviest = w > heaviest ? w : heaviest;
  }
  if (n == 0) return;
  const double scale = weight_scale(static_cast<double>(heaviest)), inverse = 1 / scale;
  double w2 = 0, wl = 0, v2l = 0, wc = 0, wt = 0, d1 = 0, a1 = 0, b1 = 0;
#pragma omp simd reduction(+ : w2, wl, v2l, wc, wt, d1, a1, b1)
  for (int i = 0; i < count; i++) {
    const bool counted = weight[i] != 0;
    const double w = weight[i], v = w * inverse, v2 = v * v,
                 l = counted ? static_cast<double>(loss[i]) + static_cast<double>(remainder[i]) : 0.0;
    w2 += v2;
    wl += w * l;
    v2l += v2 * l;
    wc += chosen[i] > rejected[i] ? w : 0.0;
    wt += chosen[i] == rejected[i] ? w : 0.0;
    d1 += counted ? chosen[i] - rejected[i] : Real(0);
    a1 += counted ? chosen[i] : Real(0);
    b1 += counted ? rejected[i] : Real(0);
  }
  const double pairs = static_cast<double>(n), l0 = v2l / w2, d0 = d1 / pairs, a0 = a1 / pairs, b0 = b1 / pairs;
  double l2 = 0, d2 = 0, a2 = 0, b2 = 0;
#pragma omp simd reduction(+ : l2, d2, a2, b2)
  for (int i = 0; i < count; i++) {
    const bool counted = weight[i] != 0;
    const double v = static_cast<double>(weight[i]) * inverse, from_a = static_cast<double>(chosen[i]) - a0;
    const double from_b = static_cast<double>(rejected[i]) - b0,
                 from_l = v * (static_cast<double>(loss[i]) + static_cast<double>(remainder[i]) - l0);
    const double from_d = static_cast<double>(chosen[i] - rejected[i]) - d0;
    l2 += counted ? from_l * from_l : 0.0;
    d2 += counted ? from_d * from_d : 0.0;
    a2 += counted ? from_a * from_a : 0.0;
    b2 += counted ? from_b * from_b : 0.0;
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double block[kSums] = {pairs,
                               0,
                               wc,
                               wt,
                               wl,
                               scale,
                               w2,
                               v2l,
                               l2,
                               static_cast<double>(correct),
                               static_cast<double>(tied),  //
                               d1,
                               d2,
                               a1,
                               a2,
                               b1,
                               b2,  // Partial has the weight
                               nans > 0 ? nan : static_cast<double>(low),
                               nans > 0 ? nan : static_cast<double>(high)};
  chunk.add_statistics(block);
}

template <typename Real>
Partial general_forward(const Pairs& pairs, const ForwardOutputs& outputs, int64_t row, int64_t chunk) {
  Partial partial = Partial::zero();
  const Formula<Real> formula(pairs);
  Buffer<Real> chosen_buffer, rejected_buffer, loss, remainder, centered;
  OptionalColumn<Real> margins(pairs.margin, pairs.options.margin), weights(pairs.weight, 1),
      targets(pairs.target, pairs.options.target);
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    const Real *margin = margins.load(row, begin, count), *weight = weights.load(row, begin, count),
               *target = targets.load(row, begin, count);
    for (int i = 0; i < count; i++) {
      const Rounded<Real> its = formula.loss_and_remainder(chosen[i], rejected[i], margin[i], target[i]);
      loss.values[i] = its.value;
      remainder.values[i] = its.remainder;
      centered.values[i] = formula.centered(loss.values[i], chosen[i], rejected[i]);
    }
    const auto term = [&](int i) { return Formula<Real>::weighted(weight[i], centered.values[i]); };
    partial.terms += sum(count, term);
    partial.weight += sum(count, [&](int i) { return static_cast<double>(weight[i]); });
    if (outputs.terms) {
      for (int i = 0; i < count; i++) centered.values[i] = static_cast<Real>(term(i));
      scatter(centered.values, count, outputs.terms.stride, outputs.terms.entry<Real>(row, begin));
    }
    if (outputs.statistics) add_statistics(chosen, rejected, weight, loss.values, remainder.values, count, partial);
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
void general_backward(const Pairs& pairs, double scale, const Column& upstream, const Gradients& gradients, int64_t row,
                      int64_t chunk) {
  const Formula<Real> formula(pairs);
  const Scale<Real> of_all = upstream ? Scale<Real>() : Scale<Real>::of(scale);
  Buffer<Real> chosen_buffer, rejected_buffer, chosen_result, rejected_result, margin_result;
  OptionalColumn<Real> margins(pairs.margin, pairs.options.margin), weights(pairs.weight, 1),
      targets(pairs.target, pairs.options.target);
  OptionalColumn<Real> factors(upstream, static_cast<double>(of_all.second));
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    const Real *margin = margins.load(row, begin, count), *weight = weights.load(row, begin, count),
               *target = targets.load(row, begin, count);
    const Real* factor = factors.load(row, begin, count);
    Real* __restrict grad_chosen = result(gradients.chosen, row, begin, chosen_result);
    Real* __restrict grad_rejected = result(gradients.rejected, row, begin, rejected_result);
    Real* __restrict grad_margin = result(gradients.margin, row, begin, margin_result);
#pragma omp simd
    for (int i = 0; i < count; i++) {
      const PairGradient<Real> gradient =
          formula.gradient(chosen[i], rejected[i], margin[i], weight[i], target[i], {of_all.first, factor[i]});
      grad_chosen[i] = gradient.chosen;
      grad_rejected[i] = gradient.rejected;
      grad_margin[i] = gradient.margin;
    }
    store(gradients.chosen, row, begin, count, chosen_result);
    store(gradients.rejected, row, begin, count, rejected_result);
    store(gradients.margin, row, begin, count, margin_result);
  });
}

// Whether a number, which is not NaN, is in the range of Real that keeps all digits.
template <typename Real>
bool is_ordinary(double number) {
  return std::abs(number) >= static_cast<double>(std::numeric_limits<Real>::min()) &&
         std::abs(number) <= static_cast<double>(std::numeric_limits<Real>::max());
}

// The gradients of a chunk of a row, times `scale`, or times the entries of `upstream` where it is given.
template <typename Real>
void backward_chunk(const Pairs& pairs, double scale, const Column& upstream, const Gradients& gradients, int64_t row,
                    int64_t chunk) {
  if (pairs.plain() && !upstream && !gradients.margin && is_ordinary<Real>(scale))
    plain_backward<Real>(pairs, static_cast<Real>(scale), gradients, row, chunk);
  else
    general_backward<Real>(pairs, scale, upstream, gradients, row, chunk);
}

template <typename Real>
double double_backward_chunk(const Pairs& pairs, double scale, double inverse_divisor, const Column& upstream,
                             const Gradients& directions, const Column& upstream_gradient, const Gradients& gradients,
                             int64_t row, int64_t chunk) {
  double total = 0;
  const Formula<Real> formula(pairs);
  const Scale<Real> of_all = upstream ? Scale<Real>() : Scale<Real>::of(scale),
                    inverse = Scale<Real>::of(inverse_divisor);
  Buffer<Real> chosen_buffer, rejected_buffer, chosen_result, rejected_result, margin_result, upstream_result;
  OptionalColumn<Real> margins(pairs.margin, pairs.options.margin), weights(pairs.weight, 1),
      targets(pairs.target, pairs.options.target);
  OptionalColumn<Real> factors(upstream, static_cast<double>(of_all.second)), towards_chosen(directions.chosen, 0),
      towards_rejected(directions.rejected, 0), towards_margin(directions.margin, 0);
  for_blocks(chunk, pairs.count, [&](int64_t begin, int count) {
    const Real* chosen = load(pairs.chosen, row, begin, count, chosen_buffer);
    const Real* rejected = load(pairs.rejected, row, begin, count, rejected_buffer);
    const Real *margin = margins.load(row, begin, count), *weight = weights.load(row, begin, count),
               *target = targets.load(row, begin, count);
    const Real *factor = factors.load(row, begin, count), *v_chosen = towards_chosen.load(row, begin, count);
    const Real *v_rejected = towards_rejected.load(row, begin, count),
               *v_margin = towards_margin.load(row, begin, count);
    Real* __restrict grad_chosen = result(gradients.chosen, row, begin, chosen_result);
    Real* __restrict grad_rejected = result(gradients.rejected, row, begin, rejected_result);
    Real* __restrict grad_margin = result(gradients.margin, row, begin, margin_result);
#pragma omp simd
    for (int i = 0; i < count; i++) {
      const PairSecond<Real> second =
          formula.second(chosen[i], rejected[i], margin[i], weight[i], target[i], {of_all.first, factor[i]}, inverse,
                         v_chosen[i], v_rejected[i], v_margin[i]);
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
