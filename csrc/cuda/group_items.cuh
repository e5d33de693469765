// The items of groups: which group an item is in, and the threads that share its visits to the others.
#pragma once

#include "../groups.h"
#include "../pair_math.h"
#include "blocks.cuh"
#include "columns.cuh"

namespace prefloss::cuda {
namespace {

__device__ __forceinline__ int64_t group_of(const Groups& groups, int64_t item) {
  if (!groups.offsets) return item / groups.size;
  int64_t low = 0, high = groups.count();  // the last group that begins at the item or before it
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (groups.offsets[middle] <= item ? low : high) = middle;
  }
  return low;
}

// What there is of an item in memory.
template <typename Real>
struct Item {
  Real reward;
  int64_t rank;

  __device__ __forceinline__ Item(const Groups& groups, int64_t index)
      : reward(load_one(static_cast<const Real*>(groups.rewards.data) + index)),
        rank(load_one(static_cast<const int64_t*>(groups.ranks.data) + index)) {}

  __device__ __forceinline__ bool ahead_of(const Item& other) const { return rank < other.rank; }
};

// How many threads share an item: as many as fill a GPU where there are few items, but each has 64 others to visit. A
// power of two. It depends on the sizes alone, and so do the bits.
int threads_an_item(const Groups& groups) {
  constexpr int64_t kWanted = int64_t{1} << 18, kLeastVisits = 64, kMostShares = 32;
  int64_t threads = 1;
  while (threads < kMostShares && groups.items * threads < kWanted && groups.size >= 2 * threads * kLeastVisits)
    threads *= 2;
  return static_cast<int>(threads);
}

int64_t blocks_for_items(const Groups& groups, int threads) {
  const int64_t items_a_block = kThreads / threads;
  return (groups.items + items_a_block - 1) / items_a_block;
}

// An item's share of a group: the others that one of its `threads` visits.
struct Share {
  int64_t item, group, begin, end;
  bool first;  // whether this thread has what all of them add up to
};

// Adds up the items' sums: share(share, sums) makes those of each of an item's threads, kSums numbers of which `add`
// adds two, and done(item, sums) has them all.
template <int kSums, typename Visit, typename Add, typename Done>
__device__ __forceinline__ void for_items(const Groups& groups, int threads, const Visit& visit, const Add& add,
                                          const Done& done) {
  __shared__ double of_threads[kSums][kThreads];
  const int items = kThreads / threads, thread = static_cast<int>(threadIdx.x), place = thread % items;
  for_parts(1, (groups.items + items - 1) / items, [&](int64_t, int64_t block) {
    Share share;
    share.item = block * items + place;
    share.first = thread < items;
    double sums[kSums] = {};
    if (share.item < groups.items) {
      share.group = group_of(groups, share.item);
      const int64_t begin = groups.begin(share.group);
      const int64_t size = groups.is_filled(share.item, share.group) ? groups.size_of(share.group) : 0;
      const int64_t visits = (size + threads - 1) / threads, skipped = thread / items * visits;
      share.begin = begin + (skipped < size ? skipped : size);
      share.end = begin + (skipped + visits < size ? skipped + visits : size);
      visit(share, sums);
    }
    if (threads > 1) {
#pragma unroll
      for (int k = 0; k < kSums; k++) of_threads[k][thread] = sums[k];
      __syncthreads();
      for (int other = place + items; share.first && other < kThreads; other += items) {
        double its[kSums];
#pragma unroll
        for (int k = 0; k < kSums; k++) its[k] = of_threads[k][other];
        add(sums, its);
      }
      __syncthreads();  // the next items of this block write there again
    }
    if (share.first && share.item < groups.items) done(share.item, sums);
  });
}

// The formula and the options of pairs of different rank, or of equal rank.
template <typename Real>
struct PairOptions {
  Formula<Real> formula;
  Real margin, target;

  __device__ __forceinline__ explicit PairOptions(const Options& options)
      : formula(options, false), margin(static_cast<Real>(options.margin)), target(static_cast<Real>(options.target)) {}
};

}  // namespace
}  // namespace prefloss::cuda
