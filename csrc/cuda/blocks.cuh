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
constexpr int64_t kMostBlocks = 4096, kMostGrid = 65536;

// Blocks that a multiprocessor runs at once. The sums of PairStats would spill registers with two.
template <bool kStatistics>
constexpr int kBlocksAtOnce = kStatistics ? 1 : 2;

// Calls body(row, part) for this block's share of all rows' parts.
template <typename Body>
__device__ __forceinline__ void for_parts(int64_t rows, int64_t parts, const Body& body) {
#pragma unroll 1
  for (int64_t task = blockIdx.x; task < rows * parts; task += gridDim.x) body(task / parts, task % parts);
}

// What a lane `distance` further has; of the sums of PairStats only where they are computed.
template <bool kStatistics>
__device__ __forceinline__ Partial shuffled(const Partial& partial, int distance) {
  Partial other = Partial::zero();
  other.terms = __shfl_down_sync(0xffffffffu, partial.terms, distance);
  other.weight = __shfl_down_sync(0xffffffffu, partial.weight, distance);
  if constexpr (kStatistics) {
#pragma unroll
    for (int k = 0; k < kGathered; k++) other.sums[k] = __shfl_down_sync(0xffffffffu, partial.sums[k], distance);
  }
  return other;
}

// The sum over all threads of a block, in its first one.
template <bool kStatistics>
__device__ __forceinline__ Partial block_sum(Partial partial) {
  __shared__ double terms[kWarps], weight[kWarps], sums[kStatistics ? kWarps : 1][kGathered];
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) partial.add(shuffled<kStatistics>(partial, distance));
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane == 0) {
    terms[warp] = partial.terms;
    weight[warp] = partial.weight;
    if constexpr (kStatistics) {
      for (int k = 0; k < kGathered; k++) sums[warp][k] = partial.sums[k];
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; w++) {
      Partial other = Partial::zero();
      other.terms = terms[w];
      other.weight = weight[w];
      if constexpr (kStatistics) {
        for (int k = 0; k < kGathered; k++) other.sums[k] = sums[w][k];
      }
      partial.add(other);
    }
  }
  __syncthreads();  // the next sum of this block writes there again
  return partial;
}

// Where a block's sum goes: it is the row's, or one of its partial sums.
template <typename Real, bool kStatistics>
__device__ __forceinline__ void finish_block(const Partial& partial, const Divisor& divisor,
                                             const ForwardOutputs& outputs, Partial* partials, int64_t row,
                                             int64_t block, int64_t blocks) {
  const Partial total = block_sum<kStatistics>(partial);
  if (threadIdx.x != 0) return;
  if (blocks == 1)
    finish_row<Real>(total, divisor, outputs, row);
  else
    partials[row * blocks + block] = total;
}

template <typename Real, bool kStatistics>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<kStatistics>)
    combine(const Partial* partials, int64_t rows, int64_t blocks, Divisor divisor, ForwardOutputs outputs) {
  for_parts(rows, 1, [&](int64_t row, int64_t) {
    Partial partial = Partial::zero();
    for (int64_t block = threadIdx.x; block < blocks; block += kThreads) {
      const Partial& other = partials[row * blocks + block];
      if constexpr (kStatistics) {
        partial.add(other);
      } else {
        partial.terms += other.terms;
        partial.weight += other.weight;
      }
    }
    finish_block<Real, kStatistics>(partial, divisor, outputs, nullptr, row, 0, 1);
  });
}

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, const Launch& where,
                   std::common_type_t<Parameters>... arguments) {
  if (blocks == 0) return cudaSuccess;
  void* pointers[] = {static_cast<void*>(&arguments)...};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(std::min(blocks, kMostGrid))), dim3(kThreads), pointers, 0,
                          static_cast<cudaStream_t>(where.stream));
}

// The second launch, where there are partial sums to add.
template <typename Real>
cudaError_t finish(cudaError_t status, int64_t rows, int64_t blocks, const Divisor& divisor,
                   const ForwardOutputs& outputs, const Launch& where) {
  if (status != cudaSuccess || blocks == 1) return status;
  return launch(outputs.statistics ? combine<Real, true> : combine<Real, false>, rows, where,
                reinterpret_cast<const Partial*>(where.scratch), rows, blocks, divisor, outputs);
}

}  // namespace
}  // namespace prefloss::cuda
