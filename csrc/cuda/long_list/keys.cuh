// Keys by which torch sorts the items of lists that are not rows of one tensor: one sort of all, in which each list's
// items come together, in the order of their ranks.
#pragma once

#include "ranks.cuh"

namespace prefloss::cuda {
namespace {

// From where all lists' items are in the order of their ranks: the list, and where among all items the rank begins.
__global__ void __launch_bounds__(kThreads, 2)
    keys_of_lists(Groups groups, const int64_t* sorted_ranks, const int64_t* order, int64_t* keys) {
  for_each(groups.items, [&](int64_t place) {
    const int64_t item = load_one(order + place);
    keys[item] = group_of(groups, item) << 32 | rank_begin(sorted_ranks, place);
  });
}

// The ranks, but places without an item come last.
__global__ void __launch_bounds__(kThreads, 2)
    keys_of_filled(Groups groups, const int64_t*, const int64_t*, int64_t* keys) {
  for_each(groups.items, [&](int64_t item) {
    constexpr int64_t kLast = static_cast<int64_t>(~uint64_t{0} >> 1);
    const bool is_there = groups.is_filled(item, group_of(groups, item));
    keys[item] = is_there ? load_one(static_cast<const int64_t*>(groups.ranks.data) + item) : kLast;
  });
}

}  // namespace
}  // namespace prefloss::cuda
