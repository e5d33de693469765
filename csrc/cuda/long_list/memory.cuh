// Where everything about long lists lies in the memory that torch has given.
#pragma once

#include <utility>

#include "../../cell_polynomials.h"
#include "../blocks.cuh"
#include "../columns.cuh"
#include "../group_items.cuh"
#include "long_list.h"

namespace prefloss::cuda {
namespace {

// Lists with more cells than this are done pair by pair: their scores range over 256 or more.
constexpr int kMostCells = 512;
// A list's items, in the order of their ranks, fall into blocks. The cells of all blocks before one, and of all behind
// it, have a row each of sums. Within blocks pairs are visited. Many cells take large blocks: kItemsACell items in each
// for every cell, so that there is one cell in the rows for as many items.
constexpr int kLeastBlock = kThreads, kItemsACell = 4;
constexpr int kSlots = 4 * kMostCells;  // of the hash table in which a list's cells are found
constexpr unsigned long long kEmptySlot = ~0ull;

// Whose sums come to an item: of those that are worse, or of those that are better.
enum class Others { kWorse, kBetter };

// Distances of two cells, worse less better, from which softplus(w) and sigma(w) have a matrix; above and below they
// are series. Known from the options.
struct NearCells {
  double nearest, furthest, margin;

  template <typename Real>
  static NearCells of(const CellGrid<Real>& grid, double margin) {
    const double reach = kSeriesFrom<Real> + grid.width;
    return {std::ceil((-reach - margin) / grid.width), std::floor((reach - margin) / grid.width), margin};
  }

  int count() const { return furthest >= nearest ? static_cast<int>(furthest - nearest) + 1 : 0; }
};

template <typename Real>
struct ListMemory {
  static constexpr int kCount = kPolynomials<Real>;
  // A list each. Cells found, less one, and a hash table of their keys: both are full of bits 1 at first.
  ListPlan* plans;
  unsigned long long *found, *slots;
  double *keys, *decays;  // of cells in ascending order; kSeries a cell, exp(-m times the distance to the next)
  // Of all lists.
  double *matrices, *series;  // 3 kCount^2 a distance: of losses, of slopes, and these turned; [turned][k][m]
  // An item each, in the order of the ranks: exp of its score, or its reward; its place from -1 to 1 in its cell, and
  // the cell's number.
  double *up, *places;
  unsigned short* cells;
  // kCount a cell of a row: moments of those before, or behind; what they give to the slope and the losses of an item.
  double *moments, *slopes, *losses;
  int64_t size;  // float64 in all

  ListMemory(const Groups& groups, const NearCells& near, double* scratch) {
    double* next = scratch;
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    const int64_t lists = groups.count(), items = groups.items,
                  cells_of_rows = items / kItemsACell + lists * kMostCells;
    plans = reinterpret_cast<ListPlan*>(take(lists * static_cast<int64_t>(sizeof(ListPlan) / sizeof(double))));
    found = reinterpret_cast<unsigned long long*>(take(lists * (1 + kSlots)));
    slots = found + lists;
    keys = take(lists * kMostCells);
    decays = take(lists * kMostCells * kSeries);
    matrices = take(3 * kCount * kCount * near.count());
    series = take(2 * kCount * kSeries);
    up = take(items);
    places = take(items);
    cells = reinterpret_cast<unsigned short*>(take((items + 3) / 4));
    moments = take(kCount * cells_of_rows);
    slopes = take(kCount * cells_of_rows);
    losses = take(kCount * cells_of_rows);
    size = next - scratch;
  }

  // Where a list's rows begin. Rows are `plan.cells` cells long, and no list has more of those than there is room for:
  // ceil(n / block) cells <= (n + block - 1) / 4, where block <= 4 kMostCells.
  __device__ __forceinline__ int64_t first_row(const Groups& groups, int64_t list) const {
    return kCount * (groups.begin(list) / kItemsACell + list * kMostCells);
  }
};

// A list, as the threads that work on it see it.
struct List {
  int64_t number, begin;
  int size, rows;
  ListPlan plan;

  __device__ __forceinline__ List(const Groups& groups, const ListPlan* plans, int64_t list)
      : number(list), begin(groups.begin(list)), size(static_cast<int>(groups.size_of(list))), plan(plans[list]) {
    rows = plan.block == 0 ? 0 : (size + plan.block - 1) / plan.block;
  }
};

// Calls body(list, row) for this block's share of the rows of all lists.
template <typename Body>
__device__ __forceinline__ void for_list_rows(const Groups& groups, const ListPlan* plans, const Body& body) {
  for_rows(groups.count(), [&](int64_t number) {
    const List list(groups, plans, number);
    for_parts(list.rows, [&](int64_t row) { body(list, static_cast<int>(row)); });
  });
}

// More rows than a list of this size has.
inline int64_t most_rows(const Groups& groups) { return (groups.size + kLeastBlock - 1) / kLeastBlock; }

}  // namespace
}  // namespace prefloss::cuda
