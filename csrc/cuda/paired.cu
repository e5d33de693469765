// The paired loss on the GPU: forward, backward, double backward. Mirrors cpu/paired.cpp.
//
// A row is cut into chunks of kThreads * kGroupsAThread groups, a group being 16 bytes of rewards, which one thread
// loads at once. Sums are float64 and added in an order that the sizes alone decide: by each thread, by shuffles within
// a warp, by the first thread over the warps, and, where a row has several blocks, by a second launch over their
// partial sums. There are no atomics, so the bits are the same from run to run.
#include <algorithm>

#include "../pair_math.h"
#include "blocks.cuh"
#include "columns.cuh"
#include "statistics.cuh"

namespace prefloss::cuda {
namespace {

constexpr int kGroupsAThread = 4, kAhead = 2;

template <typename Stored>
constexpr int kChunk = kThreads * kGroupsAThread * kGroup<Stored>;

// With options a pair needs more registers, and a thread has fewer pairs at a time.
template <typename Stored>
constexpr int kSmallGroup = kGroup<Stored> < 4 ? kGroup<Stored> : 4;

// Blocks a row of a kernel that adds up. A row without pairs has a block too: its loss is 0.
template <typename Stored>
int64_t summing_blocks(int64_t count) {
  return std::min(std::max<int64_t>((count + kChunk<Stored> - 1) / kChunk<Stored>, 1), kMostBlocks);
}

// The same where PairStats are wanted. A thread's sums take long to add to the others', so it has several groups where
// there are enough of them to keep a GPU busy.
template <typename Stored>
int64_t statistics_blocks(int64_t count) {
  constexpr int64_t kStep = kThreads * kSmallGroup<Stored>, kFew = 64, kMost = 512;
  const int64_t steps = (count + kStep - 1) / kStep;
  return std::max<int64_t>(std::min(steps, std::clamp(steps / 4, kFew, kMost)), 1);
}

// Calls body(index, count, chosen, rejected) for this thread's group of those from `begin` on: `count` pairs from
// `index` on, kSize but at the end of the row.
template <typename Stored, int kSize, typename Body>
__device__ __forceinline__ void with_group(const Pairs& pairs, int64_t row, int64_t begin, const Body& body) {
  const int64_t index = begin + static_cast<int>(threadIdx.x) * kSize, left = pairs.count - index;
  if (left <= 0) return;
  const int count = left < kSize ? static_cast<int>(left) : kSize;
  RealOf<Stored> chosen[kSize], rejected[kSize];
  load_as<Stored>(pairs.chosen, row, index, count, chosen);
  load_as<Stored>(pairs.rejected, row, index, count, rejected);
  body(index, count, chosen, rejected);
}

// The same for this thread's groups of a chunk, kAhead at a time: their loads come before any use, since what hides the
// latency of loads is how many are under way.
template <typename Stored, typename Body>
__device__ __forceinline__ void for_groups(const Pairs& pairs, int64_t row, int64_t chunk, const Body& body) {
  constexpr int kSize = kGroup<Stored>, kStep = kThreads * kSize;
  using Group = Raw<Stored, kSize>;
  const int64_t begin = chunk * kChunk<Stored>, first = begin + static_cast<int>(threadIdx.x) * kSize;
  const Stored *first_chosen = pairs.chosen.entry<Stored>(row, first),
               *first_rejected = pairs.rejected.entry<Stored>(row, first);
  if (pairs.count - begin < kChunk<Stored> || !Group::fits(first_chosen, pairs.chosen.stride) ||
      !Group::fits(first_rejected, pairs.rejected.stride)) {
#pragma unroll 1
    for (int g = 0; g < kGroupsAThread; g++) with_group<Stored, kSize>(pairs, row, begin + g * kStep, body);
    return;
  }
#pragma unroll 1
  for (int done = 0; done < kGroupsAThread; done += kAhead) {
    Group chosen[kAhead], rejected[kAhead];
#pragma unroll
    for (int g = 0; g < kAhead; g++) {
      chosen[g].load(first_chosen + (done + g) * kStep);
      rejected[g].load(first_rejected + (done + g) * kStep);
    }
#pragma unroll
    for (int g = 0; g < kAhead; g++) {
      RealOf<Stored> a[kSize], b[kSize];
      chosen[g].widen_to(a);
      rejected[g].widen_to(b);
      body(first + (done + g) * kStep, kSize, a, b);
    }
  }
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 2)
    plain_forward(Pairs pairs, Divisor divisor, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  constexpr int kPairs = kGroupsAThread * kGroup<Stored>;  // a thread's, of one chunk
  for_parts(pairs.rows, blocks, [&](int64_t row, int64_t block) {
    Partial partial = Partial::zero();
    PairLossSum sum;
    int added = 0;
#pragma unroll 1
    for (int64_t chunk = block; chunk * kChunk<Stored> < pairs.count; chunk += blocks) {
      if (added + kPairs > PairLossSum::kMost) {
        partial.terms += sum.value();
        sum = PairLossSum();
        added = 0;
      }
      for_groups<Stored>(pairs, row, chunk, [&](int64_t, int count, const auto& chosen, const auto& rejected) {
#pragma unroll
        for (int i = 0; i < kGroup<Stored>; i++) {
          if (i < count) sum.add(chosen[i] - rejected[i]);
        }
      });
      added += kPairs;
    }
    partial.terms += sum.value();
    finish_block<RealOf<Stored>, false>(partial, divisor, outputs, partials, row, block, blocks);
  });
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 2)
    general_forward(Pairs pairs, Divisor divisor, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kSmallGroup<Stored>, kStep = kThreads * kSize;
  const Formula<Real> formula(pairs);
  for_parts(pairs.rows, blocks, [&](int64_t row, int64_t block) {
    Partial partial = Partial::zero();
#pragma unroll 1
    for (int64_t begin = block * kStep; begin < pairs.count; begin += blocks * kStep) {
      with_group<Stored, kSize>(
          pairs, row, begin, [&](int64_t index, int count, const auto& chosen, const auto& rejected) {
            Real margin[kSize], weight[kSize], target[kSize], terms[kSize];
            load_optional<Stored>(pairs.margin, pairs.options.margin, row, index, count, margin);
            load_optional<Stored>(pairs.weight, 1, row, index, count, weight);
            load_optional<Stored>(pairs.target, pairs.options.target, row, index, count, target);
#pragma unroll
            for (int i = 0; i < kSize; i++) {
              const Real loss = formula.loss(chosen[i], rejected[i], margin[i], target[i]);
              const double term = Formula<Real>::weighted(weight[i], formula.centered(loss, chosen[i], rejected[i]));
              terms[i] = static_cast<Real>(term);
              if (i < count) {
                partial.terms += term;
                partial.weight += static_cast<double>(weight[i]);
              }
            }
            if (outputs.terms) store_as<Real>(outputs.terms, row, index, count, terms);
          });
    }
    finish_block<Real, false>(partial, divisor, outputs, partials, row, block, blocks);
  });
}

// With what PairStats wants to know. With weights two blocks at once would spill registers. The loss of the row follows
// from those sums, but for what centring adds.
template <typename Stored, bool kWeighted>
__global__ void __launch_bounds__(kThreads, kWeighted ? 1 : 2)
    statistics_forward(Pairs pairs, Divisor divisor, ForwardOutputs outputs, Partial* partials, int64_t blocks) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kSmallGroup<Stored>, kStep = kThreads * kSize;
  const Formula<Real> formula(pairs);
  for_parts(pairs.rows, blocks, [&](int64_t row, int64_t block) {
    PairSums<Real, kWeighted> sums;
    double terms_total = 0;
#pragma unroll 1
    for (int64_t begin = block * kStep; begin < pairs.count; begin += blocks * kStep) {
      with_group<Stored, kSize>(
          pairs, row, begin, [&](int64_t index, int count, const auto& chosen, const auto& rejected) {
            Real margin[kSize], weight[kSize], target[kSize], terms[kSize];
            Rounded<Real> loss[kSize];
            load_optional<Stored>(pairs.margin, pairs.options.margin, row, index, count, margin);
            load_optional<Stored>(kWeighted ? pairs.weight : Column(), 1, row, index, count, weight);
            load_optional<Stored>(pairs.target, pairs.options.target, row, index, count, target);
#pragma unroll
            for (int i = 0; i < kSize; i++)
              loss[i] = formula.loss_and_remainder(chosen[i], rejected[i], margin[i], target[i]);
            sums.add_group(count, chosen, rejected, weight, loss);
            if (formula.center == 0 && !outputs.terms) return;
#pragma unroll
            for (int i = 0; i < kSize; i++) {
              const Real centered = formula.centered(loss[i].value, chosen[i], rejected[i]);
              const double term = Formula<Real>::weighted(weight[i], centered);
              terms[i] = static_cast<Real>(term);
              if (i < count) terms_total += term;
            }
            if (outputs.terms) store_as<Real>(outputs.terms, row, index, count, terms);
          });
    }
    Partial partial = sums.total();
    partial.terms = formula.center == 0 ? partial.sums[kWeightedLoss] : terms_total;
    const int64_t groups = (pairs.count - block * kStep + kSize - 1) / kSize;
    finish_block<Real, true>(partial, divisor, outputs, partials, row, block, blocks, warps_of(groups));
  });
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 2)
    plain_backward(Pairs pairs, Divisor divisor, Column upstream, Gradients gradients, int64_t chunks) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kGroup<Stored>;
  for_parts(pairs.rows, chunks, [&](int64_t row, int64_t chunk) {
    const auto scale = Scale<Real>::of(row_scale<Real>(upstream, divisor, row));
    for_groups<Stored>(pairs, row, chunk, [&](int64_t index, int count, const auto& chosen, const auto& rejected) {
      Real grad_chosen[kSize], grad_rejected[kSize];
#pragma unroll
      for (int i = 0; i < kSize; i++) {
        grad_chosen[i] = scale.times(Real(1), pair_slope(chosen[i] - rejected[i]));
        grad_rejected[i] = -grad_chosen[i];
      }
      if (gradients.chosen) store_as<Stored>(gradients.chosen, row, index, count, grad_chosen);
      if (gradients.rejected) store_as<Stored>(gradients.rejected, row, index, count, grad_rejected);
    });
  });
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 2)
    general_backward(Pairs pairs, Divisor divisor, Column upstream, Gradients gradients, int64_t steps) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kSmallGroup<Stored>, kStep = kThreads * kSize;
  const Formula<Real> formula(pairs);
  const bool one_a_row = upstream.stride == 0;
  const Column factors = one_a_row ? Column() : upstream;
  for_parts(pairs.rows, steps, [&](int64_t row, int64_t step) {
    const auto scale = Scale<Real>::of(one_a_row ? row_scale<Real>(upstream, divisor, row) : 1.0);
    with_group<Stored, kSize>(
        pairs, row, step * kStep, [&](int64_t index, int count, const auto& chosen, const auto& rejected) {
          Real margin[kSize], weight[kSize], target[kSize], factor[kSize];
          Real grad_chosen[kSize], grad_rejected[kSize], grad_margin[kSize];
          load_optional<Stored>(pairs.margin, pairs.options.margin, row, index, count, margin);
          load_optional<Stored>(pairs.weight, 1, row, index, count, weight);
          load_optional<Stored>(pairs.target, pairs.options.target, row, index, count, target);
          load_optional<Stored>(factors, static_cast<double>(scale.second), row, index, count, factor);
#pragma unroll
          for (int i = 0; i < kSize; i++) {
            const PairGradient<Real> gradient =
                formula.gradient(chosen[i], rejected[i], margin[i], weight[i], target[i], {scale.first, factor[i]});
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
__global__ void __launch_bounds__(kThreads, sizeof(Stored) == 8 ? 1 : 2)
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
            load_optional<Stored>(pairs.weight, 1, row, index, count, weight);
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
  const int64_t blocks =
      outputs.statistics ? statistics_blocks<Stored>(pairs.count) : summing_blocks<Stored>(pairs.count);
  auto* const partials = reinterpret_cast<Partial*>(where.scratch);
  const bool is_plain = pairs.plain() && !outputs.terms;
  const auto kernel = outputs.statistics
                          ? pairs.weight ? statistics_forward<Stored, true> : statistics_forward<Stored, false>
                      : is_plain ? plain_forward<Stored>
                                 : general_forward<Stored>;
  const cudaError_t status = launch(kernel, pairs.rows * blocks, where, pairs, divisor, outputs, partials, blocks);
  return finish<RealOf<Stored>>(status, pairs.rows, blocks, divisor, outputs, where);
}

template <typename Stored>
cudaError_t backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& gradients,
                     const Launch& where) {
  const bool is_plain = pairs.plain() && upstream.stride == 0 && !gradients.margin;
  const int64_t size = is_plain ? kChunk<Stored> : kThreads * kSmallGroup<Stored>;
  const int64_t parts = (pairs.count + size - 1) / size;
  return launch(is_plain ? plain_backward<Stored> : general_backward<Stored>, pairs.rows * parts, where, pairs, divisor,
                upstream, gradients, parts);
}

template <typename Stored>
cudaError_t second(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& directions,
                   const Column& upstream_gradient, const Gradients& gradients, const Launch& where) {
  const int64_t blocks = summing_blocks<Stored>(pairs.count);
  auto* const partials = reinterpret_cast<Partial*>(where.scratch);
  ForwardOutputs outputs;
  if (upstream_gradient.stride == 0) outputs.loss = upstream_gradient.data;
  const cudaError_t status = launch(double_backward<Stored>, pairs.rows * blocks, where, pairs, divisor, upstream,
                                    directions, upstream_gradient, gradients, outputs, partials, blocks);
  return finish<RealOf<Stored>>(status, pairs.rows, blocks, Divisor(), outputs, where);
}

// Calls call(a null pointer of the type that the rewards are stored in).
template <typename Call>
auto with_stored(Dtype rewards, const Call& call) {
  switch (rewards) {
    case Dtype::kFloat64:
      return call(static_cast<double*>(nullptr));
    case Dtype::kBFloat16:
      return call(static_cast<BFloat16*>(nullptr));
    case Dtype::kFloat16:
      return call(static_cast<Float16*>(nullptr));
    default:
      return call(static_cast<float*>(nullptr));
  }
}

template <typename Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

}  // namespace

int64_t scratch_size(Dtype rewards, int64_t rows, int64_t count) {
  return with_stored(rewards, [&](auto* stored) {
    using Stored = Pointee<decltype(stored)>;
    const int64_t blocks = std::max(summing_blocks<Stored>(count), statistics_blocks<Stored>(count));
    return blocks == 1 ? int64_t{0} : rows * blocks * static_cast<int64_t>(sizeof(Partial) / sizeof(double));
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
