// What the items of each group counted, added up: by a warp, or, where groups are large, by a block; and a row's
// groups, as the sums of pairs are.
#pragma once

#include <algorithm>

#include "../groups.h"
#include "../sums.h"
#include "blocks.cuh"
#include "columns.cuh"

namespace prefloss::cuda {
namespace {

// How many numbers an item has counted.
template <bool kStatistics>
constexpr int kItemSums = group_sums(kStatistics);

// A block adds up each group of so many items or more, and a warp each smaller one.
constexpr int64_t kWideGroup = 1024;
__host__ __device__ __forceinline__ bool are_wide(const Groups& groups) { return groups.size >= kWideGroup; }

// Blocks a row of the kernel that adds up groups.
int64_t summing_blocks(const Groups& groups) {
  const int64_t groups_a_block = are_wide(groups) ? 1 : 4 * kWarps;
  return std::clamp<int64_t>((groups.groups + groups_a_block - 1) / groups_a_block, 1, kMostBlocks);
}

// What the lanes of a warp have, added up in its first one.
template <bool kStatistics>
__device__ __forceinline__ void add_lanes(double* sums) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    double of_lane[kItemSums<kStatistics>];
#pragma unroll
    for (int k = 0; k < kItemSums<kStatistics>; k++) of_lane[k] = __shfl_down_sync(0xffffffffu, sums[k], distance);
    add_group_sums<kStatistics>(sums, of_lane);
  }
}

// A warp adds up the items of a group, or a block, if groups are large; the groups of a row, its warps and its blocks
// make the row's sum. Factors are not divided yet.
template <typename Real, bool kStatistics>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<kStatistics>)
    add_groups(Groups groups, GroupAverage average, GroupOutputs outputs, const double* counted, Partial* partials,
               int64_t blocks) {
  __shared__ double of_warp[kItemSums<kStatistics>][kWarps];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const bool wide = are_wide(groups);
  const int threads = wide ? kThreads : kWarp, at_once = kThreads / threads;
  Real* const loss = static_cast<Real*>(outputs.loss);
  const ForwardOutputs of_row{average.per_group ? nullptr : loss, {}, outputs.sums, kStatistics};
  for_parts(groups.rows, blocks, [&](int64_t row, int64_t block) {
    Partial partial = Partial::zero();
#pragma unroll 1
    for (int64_t g = block * at_once + thread / threads; g < groups.groups; g += blocks * at_once) {
      const int64_t group = row * groups.groups + g, begin = groups.begin(group), end = begin + groups.size_of(group);
      double sums[kItemSums<kStatistics>] = {};
      if constexpr (kStatistics) sums[kPairMinimum] = HUGE_VAL, sums[kPairMaximum] = -HUGE_VAL;
#pragma unroll 1
      for (int64_t index = begin + thread % threads; index < end; index += threads) {
        double of_item[kItemSums<kStatistics>];
#pragma unroll
        for (int k = 0; k < kItemSums<kStatistics>; k++) of_item[k] = load_one(counted + k * groups.items + index);
        add_group_sums<kStatistics>(sums, of_item);
      }
      add_lanes<kStatistics>(sums);
      if (wide) {
#pragma unroll
        for (int k = 0; k < kItemSums<kStatistics>; k++) {
          if (lane == 0) of_warp[k][warp] = sums[k];
        }
        __syncthreads();
        for (int w = 1; thread == 0 && w < kWarps; w++) {
          double its[kItemSums<kStatistics>];
#pragma unroll
          for (int k = 0; k < kItemSums<kStatistics>; k++) its[k] = of_warp[k][w];
          add_group_sums<kStatistics>(sums, its);
        }
        __syncthreads();  // the next group of this block writes there again
      }
      if (thread % threads != 0) continue;
      const double share = share_of(average, groups, group, sums[kPairs]);
      outputs.factors[group] = share;
      if (average.per_group) loss[group] = static_cast<Real>(group_loss(sums, share));
      add_to_row(sums, share, kStatistics, partial);
    }
    finish_block<Real, kStatistics>(partial, average.divisor, of_row, partials, row, block, blocks);
  });
}

// sums[kListVariance] of rows of one group each, a block a row: the moments of the means of its items' losses. A group
// in which an item is better than some and worse than others is no list of two ranks.
__global__ void __launch_bounds__(kThreads, 1)
    add_lists(Groups groups, const double* factors, const double* counted, const double* own, double* sums) {
  for_parts(groups.rows, 1, [&](int64_t row, int64_t) {
    const int64_t begin = groups.begin(row), end = begin + groups.size_of(row);
    Partial better = Partial::zero(), worse = Partial::zero();
#pragma unroll 1
    for (int64_t index = begin + threadIdx.x; index < end; index += kThreads) {
      const double wins = load_one(counted + kPairs * groups.items + index),
                   losses = load_one(own + groups.items + index);
      if (wins == 0 && losses == 0) continue;
      const double mean = load_one(own + index) / (wins > 0 ? wins : losses);
      // Not a reference to the one or the other, which would put both into memory.
      const auto add_to = [mean](Partial& side) {
        side.sums[kDifferenceSquares] +=
            mean - mean + CommonMean(side.sums[kCount], 1).squares(side.sums[kDifference], mean);
        side.sums[kDifference] += mean;
        side.sums[kCount] += 1;
      };
      if (wins > 0)
        add_to(better);
      else
        add_to(worse);
      better.sums[kTied] += wins > 0 && losses > 0 ? 1 : 0;
    }
    better = block_sum<true>(better);
    worse = block_sum<true>(worse);
    if (threadIdx.x != 0 || factors[row] == 0 || better.sums[kTied] > 0) return;
    set_list(better.sums[kCount], better.sums[kDifferenceSquares], worse.sums[kCount], worse.sums[kDifferenceSquares],
             sums + row * kSums + kListVariance);
  });
}

}  // namespace
}  // namespace prefloss::cuda
