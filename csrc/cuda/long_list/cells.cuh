// The cells of scores of each list, and its items in the order of their ranks. Mirrors cpu/long_list/cells.h.
#pragma once

#include "memory.cuh"
#include "ranks.cuh"

namespace prefloss::cuda {
namespace {

// One slot for each key, wherever it finds one: which slot that is depends on which thread was first, but not which
// keys there are in the end, nor how many.
__device__ __forceinline__ void insert_key(unsigned long long bits, unsigned long long* slots,
                                           unsigned long long* found) {
  unsigned slot = static_cast<unsigned>((bits * 0x9e3779b97f4a7c15ull) >> 40);
  for (int probes = 0; probes < kSlots; probes++, slot++) {
    unsigned long long* const here = slots + slot % kSlots;
    unsigned long long there = *static_cast<volatile unsigned long long*>(here);
    if (there == kEmptySlot) {
      there = atomicCAS(here, kEmptySlot, bits);
      if (there == kEmptySlot) {
        atomicAdd(found, 1ull);
        return;
      }
    }
    if (there == bits) return;
  }
}

template <typename Real>
__global__ void __launch_bounds__(kThreads, 2) find_cells(Groups groups, CellGrid<Real> grid, ListMemory<Real> memory) {
  for_each(groups.items, [&](int64_t index) {
    const int64_t list = group_of(groups, index);
    if (!groups.is_filled(index, list)) return;
    unsigned long long* const found = memory.found + list;
    if (*static_cast<volatile unsigned long long*>(found) + 1 > kMostCells) return;  // too many already
    const double key = grid.key(load_one(static_cast<const Real*>(groups.rewards.data) + index)) + 0.0;  // no -0
    if (key - key == 0)
      insert_key(to_bits(key), memory.slots + list * kSlots, found);
    else
      atomicAdd(found, static_cast<unsigned long long>(kMostCells) + 1);
  });
}

// A block a list.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 1)
    plan_lists(Groups groups, CellGrid<Real> grid, double margin, ListMemory<Real> memory) {
  __shared__ double in_any_order[kMostCells], keys[kMostCells];
  __shared__ unsigned long long listed;
  const int thread = static_cast<int>(threadIdx.x);
  for_rows(groups.count(), [&](int64_t list) {
    const unsigned long long found = memory.found[list] + 1;
    const int cells = found > kMostCells ? 0 : static_cast<int>(found);
    if (thread == 0) listed = 0;
    __syncthreads();
    for (int slot = thread; cells > 0 && slot < kSlots; slot += kThreads) {
      const unsigned long long bits = memory.slots[list * kSlots + slot];
      if (bits != kEmptySlot) in_any_order[atomicAdd(&listed, 1ull)] = from_bits(static_cast<uint64_t>(bits));
    }
    __syncthreads();
    for (int c = thread; c < cells; c += kThreads) {
      int smaller = 0;
      for (int other = 0; other < cells; other++) smaller += in_any_order[other] < in_any_order[c] ? 1 : 0;
      keys[smaller] = in_any_order[c];
    }
    __syncthreads();
    for (int c = thread; c < cells; c += kThreads) memory.keys[list * kMostCells + c] = keys[c];
    for (int n = thread; n < (cells - 1) * kSeries; n += kThreads) {
      const int c = n / kSeries, m = n % kSeries + 1;
      memory.decays[list * kMostCells * kSeries + n] = exp_negative(m * grid.width * (keys[c + 1] - keys[c])).value;
    }
    if (thread == 0) {
      ListPlan plan{};
      plan.cells = cells;
      const double range = cells > 0 ? keys[cells - 1] - keys[0] : 0;
      const double greatest = grid.width * (range + 1) + absolute(margin);
      if (cells > 0 && greatest - greatest == 0) {  // or a distance could be infinite
        plan.middle = keys[0] + floor(range / 2);
        plan.by_products = way_of<Real>(greatest) == Way::kProduct;
        plan.factors = factors_below_overflow(plan.by_products ? greatest : 0);
        if (plan.by_products) plan.margin = BothWays::of(margin).up;
        plan.block = kLeastBlock;
        while (plan.block < kItemsACell * cells) plan.block *= 2;
      }
      memory.plans[list] = plan;
    }
    __syncthreads();  // the next list of this block writes there again
  });
}

// What is known of each item, in the order of the ranks.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 2)
    place_items(Groups groups, CellGrid<Real> grid, ListMemory<Real> memory) {
  for_each(groups.items, [&](int64_t place) {
    const List list(groups, memory.plans, group_of(groups, place));
    if (list.rows == 0 || place - list.begin >= list.size) return;  // or there is no item
    const Real reward = load_one(static_cast<const Real*>(groups.rewards.data) + item_at(groups, list.begin, place));
    const double key = grid.key(reward), *const keys = memory.keys + list.number * kMostCells;
    int low = 0, high = list.plan.cells;  // keys[low] <= key < keys[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (keys[middle] <= key ? low : high) = middle;
    }
    memory.cells[place] = static_cast<unsigned short>(low);
    memory.places[place] = grid.place(reward, key) / grid.half();
    memory.up[place] =
        list.plan.by_products ? BothWays::of(grid.score(reward, list.plan.middle)).up : grid.signed_reward(reward);
  });
}

}  // namespace
}  // namespace prefloss::cuda
