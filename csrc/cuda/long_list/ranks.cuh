// Items in the order of their ranks: where each is, and where a rank begins and ends.
#pragma once

#include "../group_items.cuh"

namespace prefloss::cuda {
namespace {

// The item at a place, counted through all lists: torch counts those of a row from its beginning.
__device__ __forceinline__ int64_t item_at(const Groups& groups, int64_t begin, int64_t place) {
  const int64_t its = load_one(groups.order + place);
  return groups.offsets ? its : begin + its;
}

// The first item of the rank of the one at a place, and the first one of the next rank: distinct ranks cost no search.
__device__ __forceinline__ int64_t rank_begin(const int64_t* ranks, int64_t place) {
  if (place == 0 || ranks[place - 1] != ranks[place]) return place;
  int64_t low = -1, high = place - 1;  // ranks[high] is its rank, ranks[low] is less
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (ranks[middle] == ranks[place] ? high : low) = middle;
  }
  return high;
}

__device__ __forceinline__ int64_t rank_end(const int64_t* ranks, int64_t place, int64_t size) {
  if (place + 1 == size || ranks[place + 1] != ranks[place]) return place + 1;
  int64_t low = place + 1, high = size;  // ranks[low] is its rank, ranks[high] is greater
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (ranks[middle] == ranks[place] ? low : high) = middle;
  }
  return high;
}

}  // namespace
}  // namespace prefloss::cuda
