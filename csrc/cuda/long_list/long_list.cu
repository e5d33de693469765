// All pairs of long ranked lists in time linear in their items. Mirrors cpu/long_list/, in another shape.
//
// The scores lie in cells, and between two cells softplus(w) and sigma(w) are polynomials (or, far apart, series in
// exp(-|w|)), so that a sum over all pairs of two cells needs the cells' moments only. The items, in the order of their
// ranks, fall into blocks. For each block there are the moments of all items behind it, cell by cell: they become
// potentials, polynomials by which each item before gets its sum over all of those. What is left, pairs within a block,
// is visited one by one. The same is done for all items before each block. An item of many of one rank takes the block
// in which the next rank begins. So the work depends neither on the order of the scores nor on ties.
//
// A block has 256 items, or, where there are more than 64 cells, four for each cell; lists with more than 512 cells
// (scores that range over 1024, in float64 over 512) are done pair by pair, as are those with rewards that are not
// finite. That is decided on the device: the launches are the same whatever the scores are, and their number does not
// even depend on the sizes. There are no atomics in sums, and so the bits are the same from run to run. (In the hash
// table that finds the cells the order of threads decides where a key is, but not which keys there are.)
//
// On paper, an item of a list in 6 cells, as ordinary scores have, takes: one stable sort by torch (two, where lists
// have different sizes); 256 pairs visited at 10 or 11 operations of float64 (32 to 36, an exponential among them,
// where scores range over more than 40), as counted in the machine code of sm_90; 60 multiply-adds in the matrices of
// two cells near each other (6 x 6 x 12 x 12 of them a block, for slopes, these turned, and losses), and 36 for its
// polynomials. That is some 3,000 operations of float64, against 76, most of them of float32, for every other item of
// the list, pair by pair. 13 launches beside the sort's and those that groups have anyway. Memory an item: 16 bytes of
// the sort, 18 of its own, 72 of the rows (96 in float64), beside the 24 that groups have anyway; and 200 KB a list.
#include <utility>

#include "cells.cuh"
#include "items.cuh"
#include "keys.cuh"
#include "moments.cuh"
#include "potentials.cuh"
#include "tables.cuh"

namespace prefloss::cuda {
namespace {

// On paper shorter ones are quicker pair by pair.
constexpr int64_t kLongList = 4096;

template <typename Real>
struct ListCall {
  const Groups& groups;
  PairOptions<Real> options;
  CellGrid<Real> grid;
  NearCells near;
  ListMemory<Real> memory;

  ListCall(const Groups& those, double* scratch)
      : groups(those),
        options(those.options),
        grid(beta()),
        near(NearCells::of(grid, margin())),
        memory(those, near, scratch) {}

  // As they are in the rewards' type.
  double beta() const { return static_cast<double>(options.formula.beta); }
  double margin() const { return static_cast<double>(options.margin); }

  cudaError_t plan(const Launch& where) const {
    const int64_t bytes = groups.count() * (1 + kSlots) * static_cast<int64_t>(sizeof *memory.found);
    cudaError_t status =
        cudaMemsetAsync(memory.found, 0xff, static_cast<size_t>(bytes), static_cast<cudaStream_t>(where.stream));
    if (status == cudaSuccess) status = launch(find_cells<Real>, blocks_for(groups.items), where, groups, grid, memory);
    if (status == cudaSuccess)
      status = launch_rows(plan_lists<Real>, groups.count(), 1, where, groups, grid, margin(), memory);
    return status;
  }

  cudaError_t visit(double* slopes, double* pairs, double* losses, const Launch& where) const {
    const int distances = near.count();
    cudaError_t status = launch(fill_tables<Real>, distances + 1, where, grid, near, distances, memory);
    if (status == cudaSuccess)
      status = launch(place_items<Real>, blocks_for(groups.items), where, groups, grid, memory);
    if (status == cudaSuccess) status = visit_those<Others::kWorse>(slopes, pairs, losses, where);
    if (status == cudaSuccess) status = visit_those<Others::kBetter>(slopes, pairs, losses, where);
    return status;
  }

 private:
  template <Others kOthers>
  cudaError_t visit_those(double* slopes, double* pairs, double* losses, const Launch& where) const {
    const int64_t lists = groups.count(), rows = most_rows(groups);
    cudaError_t status = launch_rows(sum_moments<Real>, lists, rows, where, groups, memory);
    if (status == cudaSuccess)
      status = launch_rows(add_rows<Real, kOthers>, lists, kMostCells * kPolynomials<Real> / kColumns, where, groups,
                           memory);
    if (status == cudaSuccess)
      status = launch_rows(add_potentials<Real, kOthers>, lists, rows, where, groups, grid, near, memory);
    if (status == cudaSuccess)
      status = launch(visit_items<Real, kOthers>, blocks_for(groups.items), where, groups, grid, margin(), beta(),
                      memory, slopes, pairs, losses);
    return status;
  }
};

// Calls body(ListCall) of the type that the rewards are computed in.
template <typename Body>
auto with_call(const Groups& groups, double* scratch, const Body& body) {
  return groups.in_float64() ? body(ListCall<double>(groups, scratch)) : body(ListCall<float>(groups, scratch));
}

}  // namespace

bool are_long_lists(const Groups& groups, bool statistics) {
  const Formula<double> formula(groups.options, false);
  const bool is_simple = formula.is_softplus() && !groups.half_ties && !statistics;
  const double beta = std::abs(groups.options.beta);
  return groups.count() > 0 && groups.items / groups.count() >= kLongList && is_simple && beta > 1e-30 && beta < 1e30;
}

int list_keys(const Groups& groups, const int64_t* sorted_ranks, const int64_t* order, int64_t* keys,
              const Launch& where) {
  return launch(groups.offsets ? keys_of_lists : keys_of_filled, blocks_for(groups.items), where, groups, sorted_ranks,
                order, keys);
}

int64_t long_lists_scratch_size(const Groups& groups) {
  return with_call(groups, nullptr, [](const auto& call) { return call.memory.size; });
}

const ListPlan* plans_of(const double* scratch) { return reinterpret_cast<const ListPlan*>(scratch); }

cudaError_t plan_long_lists(const Groups& groups, double* scratch, const Launch& where) {
  return with_call(groups, scratch, [&](const auto& call) { return call.plan(where); });
}

cudaError_t visit_long_lists(const Groups& groups, double* scratch, double* slopes, double* pairs, double* losses,
                             const Launch& where) {
  return with_call(groups, scratch, [&](const auto& call) { return call.visit(slopes, pairs, losses, where); });
}

}  // namespace prefloss::cuda
