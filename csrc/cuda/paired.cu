// The paired loss on the GPU: forward, backward, double backward. Mirrors cpu/paired.cpp.
#include <algorithm>

#include "../pair_math.h"
#include "pair_groups.cuh"
#include "statistics.cuh"

namespace prefloss::cuda {
namespace {

// The sum of pair_loss(logit(chosen, rejected, margin)).
template <typename Stored, bool kOptional, typename Logit>
__device__ __forceinline__ void sum_losses(const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs,
                                           Partial* partials, int64_t blocks, const Logit& logit) {
  constexpr int kSize = kPairs<Stored, kOptional>;
  for_parts(pairs.rows, blocks, [&](int64_t row, int64_t block) {
    Partial partial = Partial::zero();
    ManyLosses losses;
    for_groups(Columns<Stored, kOptional>{pairs, row}, block, blocks, [&](int64_t, int count, const auto& group) {
      RealOf<Stored> z[kSize];
#pragma unroll
      for (int i = 0; i < kSize; i++) z[i] = logit(group.chosen[i], group.rejected[i], group.margin[i]);
      losses.add(count, z);
    });
    partial.terms = losses.value();
    const int warps = warps_with_pairs(pairs, block * kChunk<Stored, kOptional>, kSize);
    finish_block<RealOf<Stored>, false>(partial, divisor, outputs, partials, row, block, blocks, warps);
  });
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 2)
    plain_forward(Pairs pairs, Divisor divisor, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  using Real = RealOf<Stored>;
  sum_losses<Stored, false>(pairs, divisor, outputs, partials, blocks,
                            [](Real chosen, Real rejected, Real) { return chosen - rejected; });
}

// With beta or a margin, and nothing else.
template <typename Stored, bool kOptional>
__global__ void __launch_bounds__(kThreads, kBlocksOf<Stored>)
    logit_forward(Pairs pairs, Divisor divisor, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  using Real = RealOf<Stored>;
  const Formula<Real> formula(pairs);
  pairs.weight = pairs.target = Column();  // as it is: the compiler leaves their loads out
  sum_losses<Stored, kOptional>(
      pairs, divisor, outputs, partials, blocks,
      [&](Real chosen, Real rejected, Real margin) { return formula.logit(chosen, rejected, margin); });
}

// What options all pairs have is the same for all threads, so to ask for it costs next to nothing; what is not asked
// for is not computed.
template <typename Stored, bool kOptional>
__global__ void __launch_bounds__(kThreads, kBlocksOf<Stored>)
    general_forward(Pairs pairs, Divisor divisor, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kPairs<Stored, kOptional>;
  const Formula<Real> formula(pairs);
  for_parts(pairs.rows, blocks, [&](int64_t row, int64_t block) {
    Partial partial = Partial::zero();
    const auto add = [&](int64_t index, int count, const auto& group) {
      const auto &chosen = group.chosen, &rejected = group.rejected, &weight = group.weight;
      Real terms[kSize];
      if (formula.all_are_right()) {
#pragma unroll
        for (int i = 0; i < kSize; i++) terms[i] = pair_loss(formula.logit(chosen[i], rejected[i], group.margin[i]));
      } else {
#pragma unroll
        for (int i = 0; i < kSize; i++)
          terms[i] = formula.loss(chosen[i], rejected[i], group.margin[i], group.target[i]);
      }
#pragma unroll
      for (int i = 0; i < kSize; i++) terms[i] = formula.centered(terms[i], chosen[i], rejected[i]);
      if (kOptional && pairs.weight) {
#pragma unroll
        for (int i = 0; i < kSize; i++) {
          if (i < count) {
            partial.terms += Formula<Real>::weighted(weight[i], terms[i]);
            partial.weight += static_cast<double>(weight[i]);
          }
          terms[i] = weight[i] == 0 ? Real(0) : weight[i] * terms[i];
        }
      } else {
#pragma unroll
        for (int i = 0; i < kSize; i++) partial.terms += i < count ? static_cast<double>(terms[i]) : 0.0;
      }
      if (outputs.terms) store_as<Real>(outputs.terms, row, index, count, terms);
    };
    for_groups(Columns<Stored, kOptional>{pairs, row}, block, blocks, add);
    const int warps = warps_with_pairs(pairs, block * kChunk<Stored, kOptional>, kSize);
    finish_block<Real, false>(partial, divisor, outputs, partials, row, block, blocks, warps);
  });
}

// With what PairStats wants to know. With weights two blocks at once would spill registers. The loss of the row follows
// from those sums, but for what centring adds.
template <typename Stored, bool kOptional, bool kWeighted>
__global__ void __launch_bounds__(kThreads, kWeighted ? 1 : 2)
    statistics_forward(Pairs pairs, Divisor divisor, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  using Real = RealOf<Stored>;
  using These = Columns<Stored, kOptional, 1>;
  constexpr int kSize = These::kSize;
  const Formula<Real> formula(pairs);
  const bool only_sums = formula.center == 0 && !outputs.terms;
  if (!kWeighted) pairs.weight = Column();  // as it is: the compiler leaves its loads out
  for_parts(pairs.rows, blocks, [&](int64_t row, int64_t block) {
    PairSums<Real, kWeighted> sums;
    double terms_total = 0;
    for_groups(These{pairs, row}, block, blocks, [&](int64_t index, int count, const auto& group) {
      const auto &chosen = group.chosen, &rejected = group.rejected, &weight = group.weight;
      Real z[kSize], hinge[kSize];
#pragma unroll
      for (int i = 0; i < kSize; i++) z[i] = formula.logit(chosen[i], rejected[i], group.margin[i]);
      if (formula.all_are_right()) {
#pragma unroll
        for (int i = 0; i < kSize; i++) hinge[i] = negative_part(z[i]);
      } else {
#pragma unroll
        for (int i = 0; i < kSize; i++) hinge[i] = hinge_of(z[i], formula.smoothed(group.target[i]));
      }
      SumOfTwo<Real> loss[kSize];
#pragma unroll
      for (int i = 0; i < kSize; i++) loss[i] = softplus_and(absolute(z[i]), hinge[i]);
      sums.add_group(count, chosen, rejected, weight, loss);
      if (only_sums) return;
      Real terms[kSize];
#pragma unroll
      for (int i = 0; i < kSize; i++) {
        const Real centered = formula.centered(loss[i].rounded(), chosen[i], rejected[i]);
        const double term = Formula<Real>::weighted(weight[i], centered);
        terms[i] = static_cast<Real>(term);
        if (i < count) terms_total += term;
      }
      if (outputs.terms) store_as<Real>(outputs.terms, row, index, count, terms);
    });
    Partial partial = sums.total();
    partial.terms = formula.center == 0 ? partial.sums[kWeightedLoss] : terms_total;
    const int warps = warps_with_pairs(pairs, block * kThreads * kSize, kSize);
    finish_block<Real, true>(partial, divisor, outputs, partials, row, block, blocks, warps);
  });
}

// The number that a row's gradients are multiplied by.
template <typename Real>
struct RowScale {
  Scale<Real> scale;
  float number;
  bool is_ordinary;  // a float that keeps all digits

  __device__ __forceinline__ static RowScale of(double number) {
    const double magnitude = absolute(number);
    return {Scale<Real>::of(number), static_cast<float>(number), magnitude >= 0x1p-126 && magnitude < 0x1p127};
  }
};

// factor * pair_slope(z), which exact(z) returns to the last digit. Half precision, if `is_rounded` to it, has no room
// for those digits. Each pair's own z decides between the two ways, so that its gradient does not depend on its
// neighbours.
template <typename Stored, int kSize, typename Exact>
__device__ __forceinline__ void to_slopes(const RealOf<Stored> (&z)[kSize], bool is_rounded, float factor,
                                          const Exact& exact, RealOf<Stored> (&slopes)[kSize]) {
  if constexpr (sizeof(Stored) == 2) {
    bool are_moderate = is_rounded;
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      slopes[i] = moderate_slope(z[i], factor);
      are_moderate &= absolute(z[i]) <= kModerate;
    }
    if (are_moderate) return;
  }
#pragma unroll
  for (int i = 0; i < kSize; i++) {
    if (sizeof(Stored) != 2 || !is_rounded || !(absolute(z[i]) <= kModerate)) slopes[i] = exact(z[i]);
  }
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 2)
    plain_backward(Pairs pairs, Divisor divisor, Column upstream, Gradients gradients) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kGroup<Stored>;
  for_rows(pairs.rows, [&](int64_t row) {
    const auto by = RowScale<Real>::of(row_scale<Real>(upstream, divisor, row));
    const auto write = [&](int64_t index, int count, const auto& group) {
      Real z[kSize], grad_chosen[kSize], grad_rejected[kSize];
#pragma unroll
      for (int i = 0; i < kSize; i++) z[i] = group.chosen[i] - group.rejected[i];
      // The long way is right for any number.
      to_slopes<Stored>(
          z, by.is_ordinary, by.number, [&](Real gap) { return by.scale.times(Real(1), pair_slope(gap)); },
          grad_chosen);
#pragma unroll
      for (int i = 0; i < kSize; i++) grad_rejected[i] = -grad_chosen[i];
      if (gradients.chosen) store_as<Stored>(gradients.chosen, row, index, count, grad_chosen);
      if (gradients.rejected) store_as<Stored>(gradients.rejected, row, index, count, grad_rejected);
    };
    for_groups(Columns<Stored, false>{pairs, row}, blockIdx.x, gridDim.x, write);
  });
}

template <typename Stored, bool kOptional>
__global__ void __launch_bounds__(kThreads, kBlocksOf<Stored>)
    general_backward(Pairs pairs, Divisor divisor, Column upstream, Gradients gradients) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kPairs<Stored, kOptional>;
  const Formula<Real> formula(pairs);
  const bool one_a_row = upstream.stride == 0;
  // Centring may cancel what a slope has in its first digits.
  const bool is_rounded = formula.center == 0 && !(gradients.margin && gradients.margin.dtype == Dtype::kFloat32);
  for_rows(pairs.rows, [&](int64_t row) {
    const auto scale = Scale<Real>::of(one_a_row ? row_scale<Real>(upstream, divisor, row) : 1.0);
    const Columns<Stored, kOptional> columns{pairs, row, one_a_row ? Column() : upstream, scale.second};
    for_groups(columns, blockIdx.x, gridDim.x, [&](int64_t index, int count, const auto& group) {
      const auto &chosen = group.chosen, &rejected = group.rejected;
      Real slope[kSize], grad_chosen[kSize], grad_rejected[kSize], grad_margin[kSize];
      if (formula.all_are_right()) {
        Real z[kSize];
#pragma unroll
        for (int i = 0; i < kSize; i++) z[i] = formula.logit(chosen[i], rejected[i], group.margin[i]);
        to_slopes<Stored>(z, is_rounded, 1.0f, [](Real logit) { return pair_slope(logit); }, slope);
      } else {
#pragma unroll
        for (int i = 0; i < kSize; i++)
          slope[i] = formula.slope(chosen[i], rejected[i], group.margin[i], group.target[i]);
      }
#pragma unroll
      for (int i = 0; i < kSize; i++) {
        const PairGradient<Real> gradient =
            formula.gradient(slope[i], chosen[i], rejected[i], group.weight[i], {scale.first, group.factor[i]});
        grad_chosen[i] = gradient.chosen;
        grad_rejected[i] = gradient.rejected;
        grad_margin[i] = gradient.margin;
      }
      if (gradients.chosen) store_as<Stored>(gradients.chosen, row, index, count, grad_chosen);
      if (gradients.rejected) store_as<Stored>(gradients.rejected, row, index, count, grad_rejected);
      store_optional<Stored>(gradients.margin, row, index, count, grad_margin);
    });
  });
}

// The upstream gradient's derivative is one a pair, or a row's sum: the "loss" of `outputs`.
template <typename Stored>
__global__ void __launch_bounds__(kThreads, kBlocksOf<Stored>)
    double_backward(Pairs pairs, Divisor divisor, Column upstream, Gradients directions, Column upstream_gradient,
                    Gradients gradients, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  using Real = RealOf<Stored>;
  // float64 would spill registers with two pairs at a time.
  constexpr int kSize = kSmallGroup<Stored> < 4 ? 1 : 4, kStep = kThreads * kSize;
  const Formula<Real> formula(pairs);
  const bool one_a_row = upstream.stride == 0;
  const Column factors = one_a_row ? Column() : upstream;
  for_parts(pairs.rows, blocks, [&](int64_t row, int64_t block) {
    const auto scale = Scale<Real>::of(one_a_row ? row_scale<Real>(upstream, divisor, row) : 1.0);
    const auto inverse = Scale<Real>::of(one_a_row ? 1.0 / divisor.of_row(row) : 1.0);
    Partial partial = Partial::zero();
#pragma unroll 1
    for (int64_t begin = block * kStep; begin < pairs.count; begin += blocks * kStep) {
      with_group<Stored, kSize>(
          pairs, row, begin, [&](int64_t index, int count, const auto& chosen, const auto& rejected) {
            Real margin[kSize], weight[kSize], target[kSize], factor[kSize];
            Real v_chosen[kSize], v_rejected[kSize], v_margin[kSize];
            Real grad_upstream[kSize], grad_chosen[kSize], grad_rejected[kSize], grad_margin[kSize];
            load_optional<Stored>(pairs.margin, pairs.options.margin, row, index, count, margin);
            load_optional<Stored, true>(pairs.weight, 1, row, index, count, weight);
            load_optional<Stored>(pairs.target, pairs.options.target, row, index, count, target);
            load_optional<Stored>(factors, static_cast<double>(scale.second), row, index, count, factor);
            load_optional<Stored>(directions.chosen, 0, row, index, count, v_chosen);
            load_optional<Stored>(directions.rejected, 0, row, index, count, v_rejected);
            load_optional<Stored>(directions.margin, 0, row, index, count, v_margin);
#pragma unroll
            for (int i = 0; i < kSize; i++) {
              const PairSecond<Real> second =
                  formula.second(chosen[i], rejected[i], margin[i], weight[i], target[i], {scale.first, factor[i]},
                                 inverse, v_chosen[i], v_rejected[i], v_margin[i]);
              grad_upstream[i] = second.upstream;
              grad_chosen[i] = second.gradient.chosen;
              grad_rejected[i] = second.gradient.rejected;
              grad_margin[i] = second.gradient.margin;
              if (i < count) partial.terms += static_cast<double>(second.upstream);
            }
            if (upstream_gradient.stride != 0) store_as<Real>(upstream_gradient, row, index, count, grad_upstream);
            if (gradients.chosen) store_as<Stored>(gradients.chosen, row, index, count, grad_chosen);
            if (gradients.rejected) store_as<Stored>(gradients.rejected, row, index, count, grad_rejected);
            store_optional<Stored>(gradients.margin, row, index, count, grad_margin);
          });
    }
    finish_block<Real, false>(partial, Divisor(), outputs, partials, row, block, blocks);
  });
}

template <typename Stored>
cudaError_t forward(const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs, const Launch& where) {
  auto* const partials = reinterpret_cast<Partial*>(where.scratch);
  const auto run = [&](const auto kernel, int64_t blocks) {
    const cudaError_t status =
        launch_rows(kernel, pairs.rows, blocks, where, pairs, divisor, outputs, partials, blocks);
    return finish<RealOf<Stored>>(status, pairs.rows, blocks, divisor, outputs, where);
  };
  if (outputs.statistics)
    return pairs.has_columns()
               ? run(pairs.weight ? statistics_forward<Stored, true, true> : statistics_forward<Stored, true, false>,
                     statistics_blocks<Stored, true>(pairs.count))
               : run(statistics_forward<Stored, false, false>, statistics_blocks<Stored, false>(pairs.count));
  const bool sums_losses = is_sum_of_losses(Formula<RealOf<Stored>>(pairs), pairs) && !outputs.terms;
  if (pairs.has_columns())
    return run(sums_losses ? logit_forward<Stored, true> : general_forward<Stored, true>,
               chunk_blocks<Stored, true>(pairs.count));
  return run(!sums_losses    ? general_forward<Stored, false>
             : pairs.plain() ? plain_forward<Stored>
                             : logit_forward<Stored, false>,
             chunk_blocks<Stored, false>(pairs.count));
}

// A gradient's blocks take several parts each, where there are more than any GPU runs at once.
template <typename Stored>
cudaError_t backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& gradients,
                     const Launch& where) {
  const bool columns = pairs.has_columns() || upstream.stride != 0, is_plain = pairs.plain() && !gradients.margin;
  const int64_t size = columns ? kChunk<Stored, true> : kChunk<Stored, false>;
  const int64_t parts = (pairs.count + size - 1) / size;
  const auto kernel = columns    ? general_backward<Stored, true>
                      : is_plain ? plain_backward<Stored>
                                 : general_backward<Stored, false>;
  return launch_rows(kernel, pairs.rows, std::min(parts, kMostBlocks), where, pairs, divisor, upstream, gradients);
}

template <typename Stored>
cudaError_t second(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& directions,
                   const Column& upstream_gradient, const Gradients& gradients, const Launch& where) {
  const int64_t blocks = second_blocks<Stored>(pairs.count);
  auto* const partials = reinterpret_cast<Partial*>(where.scratch);
  ForwardOutputs outputs;
  if (upstream_gradient.stride == 0) outputs.loss = upstream_gradient.data;
  const cudaError_t status = launch_rows(double_backward<Stored>, pairs.rows, blocks, where, pairs, divisor, upstream,
                                         directions, upstream_gradient, gradients, outputs, partials, blocks);
  return finish<RealOf<Stored>>(status, pairs.rows, blocks, Divisor(), outputs, where);
}

}  // namespace

int64_t scratch_size(Dtype rewards, int64_t rows, int64_t count) {
  return with_stored(rewards, [&](auto* stored) {
    using Stored = Pointee<decltype(stored)>;
    const auto memory = [](int64_t blocks, size_t bytes) {
      return blocks == 1 ? int64_t{0} : blocks * static_cast<int64_t>(bytes / sizeof(double));
    };
    return rows * std::max({memory(chunk_blocks<Stored, false>(count), sizeof(Terms)),
                            memory(chunk_blocks<Stored, true>(count), sizeof(Terms)),
                            memory(second_blocks<Stored>(count), sizeof(Terms)),
                            memory(statistics_blocks<Stored, false>(count), sizeof(Partial)),
                            memory(statistics_blocks<Stored, true>(count), sizeof(Partial))});
  });
}

int paired_forward(const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs, const Launch& where) {
  return with_stored(pairs.chosen.dtype,
                     [&](auto* stored) { return forward<Pointee<decltype(stored)>>(pairs, divisor, outputs, where); });
}

int paired_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& gradients,
                    const Launch& where) {
  return with_stored(pairs.chosen.dtype, [&](auto* stored) {
    return backward<Pointee<decltype(stored)>>(pairs, divisor, upstream, gradients, where);
  });
}

int paired_double_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream,
                           const Gradients& directions, const Column& upstream_gradient, const Gradients& gradients,
                           const Launch& where) {
  return with_stored(pairs.chosen.dtype, [&](auto* stored) {
    return second<Pointee<decltype(stored)>>(pairs, divisor, upstream, directions, upstream_gradient, gradients, where);
  });
}

}  // namespace prefloss::cuda
