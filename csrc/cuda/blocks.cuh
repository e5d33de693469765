// Sums over the threads of a block and the blocks of a row, and launches: what the kernels of all data layouts share.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "../sums.h"
#include "kernels.h"

namespace prefloss::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
// More blocks a row than any GPU runs at once; each then takes every kMostBlocks-th part.
constexpr int64_t kMostBlocks = 4096, kMostGrid = 65535;

// Blocks that a multiprocessor runs at once. The sums of PairStats would spill registers with two.
template <bool kStatistics>
constexpr int kBlocksAtOnce = kStatistics ? 1 : 2;

// The warps of a block that have something to do where only its first `threads` do.
__device__ __forceinline__ int warps_of(int64_t threads) {
  return threads >= kThreads ? kWarps : threads > kWarp ? static_cast<int>((threads + kWarp - 1) / kWarp) : 1;
}

// Calls body(row) for this block's share of the rows, and body(part) for that of a row's parts. A grid has a dimension
// for each: dividing a block's number by the parts would take longer than most of what follows.
template <typename Body>
__device__ __forceinline__ void for_rows(int64_t rows, const Body& body) {
#pragma unroll 1
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) body(row);
}

template <typename Body>
__device__ __forceinline__ void for_parts(int64_t parts, const Body& body) {
#pragma unroll 1
  for (int64_t part = blockIdx.x; part < parts; part += gridDim.x) body(part);
}

template <typename Body>
__device__ __forceinline__ void for_parts(int64_t rows, int64_t parts, const Body& body) {
  for_rows(rows, [&](int64_t row) { for_parts(parts, [&](int64_t part) { body(row, part); }); });
}

// What becomes of a number of each lane of a warp, in all of them.
template <typename Join>
__device__ __forceinline__ double joined_lanes(double number, const Join& join) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    number = join(number, __shfl_xor_sync(0xffffffffu, number, distance));
  return number;
}

// What becomes of a number of each thread of a block's first `warps` warps, in every lane of the warp that asks.
template <typename Join>
__device__ __forceinline__ double joined(const double* numbers, int warps, const Join& join) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  double total = numbers[lane];
  for (int w = 1; w < warps; w++) total = join(total, numbers[w * kWarp + lane]);
  return joined_lanes(total, join);
}

// What PairStats wants to know of a block's pairs, in its first thread. Joining two sets of pairs takes divisions, and
// a thread's set would be joined eight times. So the whole block's means come first; then each thread's squares are
// moved to them, once, and what is left to do is to add. Each warp adds up another number.
__device__ __forceinline__ Partial sum_of_statistics(Partial partial, int warps) {
  constexpr int kKinds[] = {
      kWeightCubed,
      kWeightFourth,
      kWeightFifth,
      kSquaredWeightLossSquares,
      kCubedWeightLoss,
      kCubedWeightLossSquares,
      kCubedWeightLossCubes,
      kDifferenceSquares,
      kChosenSquares,
      kRejectedSquares,
      kWeightCorrect,
      kWeightTied,
      kWeightedLoss,
      kUnits,
      kCorrect,
      kTied,
      kMinimum,
      kMaximum,
  };
  constexpr int kNumbers = static_cast<int>(sizeof kKinds / sizeof *kKinds) + 2;
  __shared__ double of_threads[kWarps][kThreads], means[kWarps], totals[kNumbers];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const auto sum = [](double a, double b) { return a + b; };
  double* const sums = partial.sums;
  if (warp < warps) {
    const double its[kWarps] = {sums[kCount],         sums[kDifference],        sums[kChosen],      sums[kRejected],
                                sums[kWeightSquared], sums[kSquaredWeightLoss], sums[kWeightScale], 0};
#pragma unroll
    for (int k = 0; k < kWarps; k++) of_threads[k][thread] = its[k];
  }
  __syncthreads();
  constexpr int kScale = 6;
  const double* const scales = of_threads[kScale];
  const double scale = joined(scales, warps, [](double a, double b) { return greater_or_nan(a, b); });
  if (warp < kScale) {
    const bool is_scaled = warp == 4 || warp == 5;
    double total = 0;
    for (int t = lane; t < warps * kWarp; t += kWarp) {
      const double ratio = is_scaled ? scale_ratio(scales[t], scale) : 1;
      total += ratio * ratio * of_threads[warp][t];
    }
    total = joined_lanes(total, sum);
    if (lane == 0) means[warp] = total;
  }
  __syncthreads();
  const Means all{means[0], means[1], means[2], means[3], means[4], means[5]};
  partial.rescale_units(scale);
  partial.move_to_mean(all);
#pragma unroll
  for (int first = 0; first < kNumbers; first += kWarps) {
    if (warp < warps) {
#pragma unroll
      for (int k = first; k < first + kWarps && k < kNumbers; k++)
        of_threads[k - first][thread] = k == 0 ? partial.terms : k == 1 ? partial.weight : sums[kKinds[k - 2]];
    }
    __syncthreads();
    const int k = first + warp;
    if (k < kNumbers) {
      const bool are_last = first + kWarps >= kNumbers;  // known to the compiler: the others are sums
      const double total = joined(of_threads[warp], warps, [&](double a, double b) {
        return are_last && k == kNumbers - 2   ? lesser_or_nan(a, b)
               : are_last && k == kNumbers - 1 ? greater_or_nan(a, b)
                                               : a + b;
      });
      if (lane == 0) totals[k] = total;
    }
    __syncthreads();
  }
  partial.terms = totals[0];
  partial.weight = totals[1];
#pragma unroll
  for (int k = 2; k < kNumbers; k++) sums[kKinds[k - 2]] = totals[k];
  sums[kCount] = all.count;
  sums[kDifference] = all.difference;
  sums[kChosen] = all.chosen;
  sums[kRejected] = all.rejected;
  sums[kWeightSquared] = all.weight_squared;
  sums[kSquaredWeightLoss] = all.squared_weight_loss;
  return partial;
}

// The terms and weights of a block's pairs, in its first thread.
__device__ __forceinline__ Partial sum_of_terms(const Partial& partial, int warps) {
  __shared__ double of_warps[kWarps][2];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  Partial total = Partial::zero();
  if (warp < warps) {
    const auto sum = [](double a, double b) { return a + b; };
    total.terms = joined_lanes(partial.terms, sum);
    total.weight = joined_lanes(partial.weight, sum);
    if (lane == 0) {
      of_warps[warp][0] = total.terms;
      of_warps[warp][1] = total.weight;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < warps; w++) {
      total.terms += of_warps[w][0];
      total.weight += of_warps[w][1];
    }
  }
  __syncthreads();  // the next sum of this block writes there again
  return total;
}

// The sum over all threads of a block, in its first one. Threads from warp number `warps` on have nothing to add.
template <bool kStatistics>
__device__ __forceinline__ Partial block_sum(const Partial& partial, int warps = kWarps) {
  return kStatistics ? sum_of_statistics(partial, warps) : sum_of_terms(partial, warps);
}

// A block's sum without statistics: a tenth of the memory.
struct Terms {
  double terms, weight;
};

// Where a block's sum goes: it is the row's, or one of its partial sums.
template <typename Real, bool kStatistics>
__device__ __forceinline__ void finish_block(const Partial& partial, const Divisor& divisor,
                                             const ForwardOutputs& outputs, Partial* partials, int64_t row,
                                             int64_t block, int64_t blocks, int warps = kWarps) {
  const Partial total = block_sum<kStatistics>(partial, warps);
  if (threadIdx.x != 0) return;
  if (blocks == 1) return finish_row<Real>(total, divisor, outputs, row);
  if constexpr (kStatistics)
    partials[row * blocks + block] = total;
  else
    reinterpret_cast<Terms*>(partials)[row * blocks + block] = {total.terms, total.weight};
}

template <typename Real, bool kStatistics>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<kStatistics>)
    combine(const Partial* partials, int64_t rows, int64_t blocks, Divisor divisor, ForwardOutputs outputs) {
  for_parts(rows, 1, [&](int64_t row, int64_t) {
    Partial partial = Partial::zero();
    for (int64_t block = threadIdx.x; block < blocks; block += kThreads) {
      if constexpr (kStatistics) {
        partial.add(partials[row * blocks + block]);
      } else {
        const Terms& other = reinterpret_cast<const Terms*>(partials)[row * blocks + block];
        partial.terms += other.terms;
        partial.weight += other.weight;
      }
    }
    finish_block<Real, kStatistics>(partial, divisor, outputs, nullptr, row, 0, 1, warps_of(blocks));
  });
}

// A grid for `parts` of each of `rows`.
template <typename... Parameters>
cudaError_t launch_rows(void (*kernel)(Parameters...), int64_t rows, int64_t parts, const Launch& where,
                        std::common_type_t<Parameters>... arguments) {
  if (rows == 0 || parts == 0) return cudaSuccess;
  void* pointers[] = {static_cast<void*>(&arguments)...};
  const dim3 grid(static_cast<unsigned>(std::min(parts, kMostGrid)), static_cast<unsigned>(std::min(rows, kMostGrid)));
  return cudaLaunchKernel(kernel, grid, dim3(kThreads), pointers, 0, static_cast<cudaStream_t>(where.stream));
}

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, const Launch& where,
                   std::common_type_t<Parameters>... arguments) {
  return launch_rows(kernel, 1, blocks, where, arguments...);
}

// Calls body(index) for this thread's share of [0, count), in a grid of blocks_for(count).
template <typename Body>
__device__ __forceinline__ void for_each(int64_t count, const Body& body) {
#pragma unroll 1
  for (int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x; index < count;
       index += gridDim.x * int64_t{kThreads})
    body(index);
}

inline int64_t blocks_for(int64_t count) { return (count + kThreads - 1) / kThreads; }

// The second launch, where there are partial sums to add.
template <typename Real>
cudaError_t finish(cudaError_t status, int64_t rows, int64_t blocks, const Divisor& divisor,
                   const ForwardOutputs& outputs, const Launch& where) {
  if (status != cudaSuccess || blocks == 1) return status;
  return launch_rows(outputs.statistics ? combine<Real, true> : combine<Real, false>, rows, 1, where,
                     reinterpret_cast<const Partial*>(where.scratch), rows, blocks, divisor, outputs);
}

}  // namespace
}  // namespace prefloss::cuda
