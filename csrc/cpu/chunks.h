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

// The sums over a block of units, of weight(i) / scale = v and mean loss(i); a unit of weight 0 has the loss 0.
template <typename Weight, typename Loss>
void set_units(int count, double scale, const Weight& weight, const Loss& loss, double* sums) {
  const double inverse = 1 / scale;
  double w2 = 0, w3 = 0, w4 = 0, w5 = 0, v2l = 0;
#pragma omp simd reduction(+ : w2, w3, w4, w5, v2l)
  for (int i = 0; i < count; i++) {
    const double v = weight(i) * inverse, v2 = v * v;
    w2 += v2;
    w3 += v2 * v;
    w4 += v2 * v2;
    w5 += v2 * v2 * v;
    v2l += v2 * loss(i);
  }
  const double mean = v2l / w2;
  double squares = 0, first = 0, second = 0, third = 0;
#pragma omp simd reduction(+ : squares, first, second, third)
  for (int i = 0; i < count; i++) {
    const double v = weight(i) * inverse, v2 = v * v, from = loss(i) - mean, v2l2 = v2 * from * from;
    squares += v2l2;
    first += v2 * v * from;
    second += v * v2l2;
    third += v * v2l2 * from;
  }
  sums[kWeightScale] = scale;
  sums[kWeightSquared] = w2;
  sums[kWeightCubed] = w3;
  sums[kWeightFourth] = w4;
  sums[kWeightFifth] = w5;
  sums[kSquaredWeightLoss] = v2l;
  sums[kSquaredWeightLossSquares] = squares;
  sums[kCubedWeightLoss] = first;
  sums[kCubedWeightLossSquares] = second;
  sums[kCubedWeightLossCubes] = third;
}

// Adds the sums of one block to those of its chunk. Counts of a block and extremes are exact in Real; everything else
// is added in float64. What numbers differ from their mean by takes another loop, over the first-level cache. Without
// weights, each is the 1 that the compiler then knows.
template <bool kWeighted, typename Real>
void add_statistics(const Real* chosen, const Real* rejected, const Real* weights, const Real* loss,
                    const Real* remainder, int count, Partial& chunk) {
  const auto weight = [=](int i) { return kWeighted ? weights[i] : Real(1); };
  const Real infinity = std::numeric_limits<Real>::infinity();
  Real n = 0, correct = 0, tied = 0, nans = 0, low = infinity, high = -infinity, heaviest = 0;
#pragma omp simd reduction(+ : n, correct, tied, nans) reduction(min : low) reduction(max : high, heaviest)
  for (int i = 0; i < count; i++) {
    const bool counted = weight(i) != 0;
    const Real a = chosen[i], b = rejected[i], one = counted ? Real(1) : Real(0), w = absolute(weight(i));
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
  double block[kGathered] = {};
  const auto exact_weight = [=](int i) { return static_cast<double>(weight(i)); };
  const auto exact_loss = [=](int i) {
    return weight(i) != 0 ? static_cast<double>(loss[i]) + static_cast<double>(remainder[i]) : 0.0;
  };
  set_units(count, weight_scale(static_cast<double>(heaviest)), exact_weight, exact_loss, block);
  double wl = 0, wc = 0, wt = 0, d1 = 0, a1 = 0, b1 = 0;
#pragma omp simd reduction(+ : wl, wc, wt, d1, a1, b1)
  for (int i = 0; i < count; i++) {
    const bool counted = weight(i) != 0;
    const double w = exact_weight(i);
    wl += w * exact_loss(i);
    wc += chosen[i] > rejected[i] ? w : 0.0;
    wt += chosen[i] == rejected[i] ? w : 0.0;
    d1 += counted ? chosen[i] - rejected[i] : Real(0);
    a1 += counted ? chosen[i] : Real(0);
    b1 += counted ? rejected[i] : Real(0);
  }
  const double pairs = static_cast<double>(n), d0 = d1 / pairs, a0 = a1 / pairs, b0 = b1 / pairs;
  double d2 = 0, a2 = 0, b2 = 0;
#pragma omp simd reduction(+ : d2, a2, b2)
  for (int i = 0; i < count; i++) {
    const bool counted = weight(i) != 0;
    const double from_a = static_cast<double>(chosen[i]) - a0, from_b = static_cast<double>(rejected[i]) - b0;
    const double from_d = static_cast<double>(chosen[i] - rejected[i]) - d0;
    d2 += counted ? from_d * from_d : 0.0;
    a2 += counted ? from_a * from_a : 0.0;
    b2 += counted ? from_b * from_b : 0.0;
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  block[kCount] = block[kUnits] = pairs;  // each pair is a unit; Partial has the weight
  block[kWeightCorrect] = wc;
  block[kWeightTied] = wt;
  block[kWeightedLoss] = wl;
  block[kCorrect] = static_cast<double>(correct);
  block[kTied] = static_cast<double>(tied);
  block[kDifference] = d1;
  block[kDifferenceSquares] = d2;
  block[kChosen] = a1;
  block[kChosenSquares] = a2;
  block[kRejected] = b1;
  block[kRejectedSquares] = b2;
  block[kMinimum] = nans > 0 ? nan : static_cast<double>(low);
  block[kMaximum] = nans > 0 ? nan : static_cast<double>(high);
  chunk.add_statistics(block);
}

// What more is done with a block whose statistics are gathered, of pairs [begin, begin + count): nothing.
struct NothingMore {
  template <typename Real>
  void operator()(int64_t, int, const Real*, const Real*, const Real*) const {}
};

template <typename Real, typename More = NothingMore>
Partial general_forward(const Pairs& pairs, const ForwardOutputs& outputs, int64_t row, int64_t chunk,
                        const More& more = {}) {
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
    if (!outputs.statistics) return;
    const auto add = pairs.weight ? add_statistics<true, Real> : add_statistics<false, Real>;
    add(chosen, rejected, weight, loss.values, remainder.values, count, partial);
    more(begin, count, weight, loss.values, remainder.values);
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
