// What each item gets: from the items of its own block pair by pair, and from all others by its cell's polynomials.
// Mirrors cpu/long_list/leaf.h and the end of all_pairs.h.
#pragma once

#include "memory.cuh"
#include "ranks.cuh"

namespace prefloss::cuda {
namespace {

// Sums over pairs: of sigma(w), and of softplus(w).
struct ItemSums {
  double slope = 0, loss = 0;
};

// An item with the others [begin, end) in the order of the ranks, in float64. Where scores lie close together, exp(w)
// is the ratio of a number of each item.
template <Others kOthers, Way kWay>
__device__ __forceinline__ ItemSums visit(const double* up, double beta, double margin, const ListPlan& plan, int place,
                                          int begin, int end) {
  constexpr bool kWorse = kOthers == Others::kWorse, kProduct = kWay == Way::kProduct;
  const double its = !kProduct ? up[place] : kWorse ? plan.margin / up[place] : plan.margin * up[place];
  ItemSums sums;
#pragma unroll 1
  for (int first = begin; first < end; first += plan.factors) {
    const int last = first + plan.factors < end ? first + plan.factors : end;
    double product = 0;  // less 1
#pragma unroll 4
    for (int other = first; other < last; other++) {
      if constexpr (kProduct && !kWorse) {
        sums.slope += its / (its + up[other]);
        continue;
      }
      double e, w = 0;
      if constexpr (kProduct) {
        e = its * up[other];
      } else {
        w = fused(beta, kWorse ? up[other] - its : its - up[other], margin);
        e = exp_negative(absolute(w)).value;
      }
      const double inverse = 1 / (1 + e);
      sums.slope += kProduct || w < 0 ? e * inverse : inverse;
      if constexpr (kWorse) {
        product += fused(product, e, e);
        if constexpr (!kProduct) sums.loss += w > 0 ? w : 0.0;
      }
    }
    if constexpr (kWorse) sums.loss += log1p_positive(product);
  }
  return sums;
}

// First what comes from the worse items, then, added to it, what comes from the better ones. Items of the same rank are
// neither: what is behind them, or before, begins at a block's end, or at its begin, near the next rank.
template <typename Real, Others kOthers>
__global__ void __launch_bounds__(kThreads, 2)
    visit_items(Groups groups, CellGrid<Real> grid, double margin, double beta, ListMemory<Real> memory, double* slopes,
                double* pairs, double* losses) {
  constexpr bool kWorse = kOthers == Others::kWorse;
  constexpr int kCount = kPolynomials<Real>;
  for_each(groups.items, [&](int64_t index) {
    const List list(groups, memory.plans, group_of(groups, index));
    if (list.rows == 0 || index - list.begin >= list.size) return;  // or there is no item
    const int place = static_cast<int>(index - list.begin), block = list.plan.block;
    const int64_t* const ranks = groups.sorted_ranks + list.begin;
    int begin, end, row;
    if constexpr (kWorse) {
      begin = static_cast<int>(rank_end(ranks, place, list.size));
      row = (begin + block - 1) / block - 1;
      end = row + 1 < list.rows ? (row + 1) * block : list.size;
    } else {
      end = static_cast<int>(rank_begin(ranks, place));
      row = end / block;
      begin = row * block;
    }
    const double* const up = memory.up + list.begin;
    ItemSums sums = list.plan.by_products
                        ? visit<kOthers, Way::kProduct>(up, grid.beta(), margin, list.plan, place, begin, end)
                        : visit<kOthers, Way::kExponential>(up, grid.beta(), margin, list.plan, place, begin, end);
    if (kWorse ? row + 1 < list.rows : row > 0) {
      const int64_t cell = static_cast<int64_t>(row) * list.plan.cells + memory.cells[index];
      const int64_t at = memory.first_row(groups, list.number) + cell * kCount;
      sums.slope += evaluate<kCount>(memory.slopes + at, memory.places[index]).value;
      if constexpr (kWorse) sums.loss += evaluate<kCount>(memory.losses + at, memory.places[index]).value;
    }
    const int64_t item = item_at(groups, list.begin, index);
    if constexpr (kWorse) {
      slopes[item] = -beta * sums.slope;
      pairs[item] = list.size - begin;
      losses[item] = sums.loss;
    } else {
      slopes[item] += beta * sums.slope;
    }
  });
}

}  // namespace
}  // namespace prefloss::cuda
