// What all items of the blocks before one, or behind it, give to an item of each cell: polynomials of its place.
// Mirrors cpu/long_list/interaction.h.
#pragma once

#include "tables.cuh"

namespace prefloss::cuda {
namespace {

// A number of each cell of a row, added up over the cells from one end.
struct Chain {
  double small[kMostCells][kSeries];                 // sums of exp(-m |w|), from the cell on
  double counts[kMostCells], distances[kMostCells];  // of items, and how far they are from the midst of the cell
};

// From the end of the cells at which the others lie (`up`: above), on to the next cell and the next.
__device__ __forceinline__ void add_up(Chain& chain, const double* keys, const double* decays, int cells, double width,
                                       bool up, bool large) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kSeries) {
#pragma unroll 1
    for (int n = 1; n < cells; n++) {
      const int here = up ? cells - 1 - n : n, last = up ? here + 1 : here - 1, gap = up ? here : last;
      chain.small[here][thread] =
          fused(chain.small[last][thread], decays[gap * kSeries + thread], chain.small[here][thread]);
    }
  } else if (large && thread == kWarp) {
#pragma unroll 1
    for (int n = 1; n < cells; n++) {
      const int here = up ? cells - 1 - n : n, last = up ? here + 1 : here - 1;
      chain.distances[here] +=
          fused(chain.counts[last], width * absolute(keys[last] - keys[here]), chain.distances[last]);
      chain.counts[here] += chain.counts[last];
    }
  }
}

// The first cell on the way from the others, whose distance from this one is still more than `near`; -1 where there is
// none.
__device__ __forceinline__ int first_beyond(const double* keys, int cells, int cell, double near, bool up) {
  int low = 0, high = cells;  // of cells by distance, those before `low` are no further; those from `high` on are
  while (low < high) {
    const int middle = (low + high) / 2, other = up ? middle : cells - 1 - middle;
    if (up ? keys[other] - keys[cell] > near : keys[cell] - keys[other] > near)
      high = middle;
    else
      low = middle + 1;
  }
  return low == cells ? -1 : up ? low : cells - 1 - low;
}

// Coefficient k of what cells near this one give: to its slopes, and to its losses.
template <typename Real, Others kOthers>
__device__ __forceinline__ void add_near(const double* keys, const double* moments, const double* matrices, int cells,
                                         int cell, int k, const NearCells& near, double& slope, double& loss) {
  constexpr int kCount = kPolynomials<Real>, kSquare = kCount * kCount;
  const bool worse = kOthers == Others::kWorse;
  int low = 0, high = cells;  // those before are too low
  while (low < high) {
    const int middle = (low + high) / 2;
    const double above = keys[middle] - keys[cell];
    if (worse ? above < near.nearest : -above > near.furthest)
      low = middle + 1;
    else
      high = middle;
  }
#pragma unroll 1
  for (int other = low; other < cells; other++) {
    const double distance = worse ? keys[other] - keys[cell] : keys[cell] - keys[other];
    if (worse ? distance > near.furthest : distance < near.nearest) break;
    const double* const matrix = matrices + static_cast<int>(distance - near.nearest) * 3 * kSquare;
    const double* const its = moments + other * kCount;
    const double* const slopes = matrix + (worse ? kSquare : 2 * kSquare) + k;
#pragma unroll
    for (int l = 0; l < kCount; l++) {
      slope = fused(slopes[l * kCount], its[l], slope);
      if (worse) loss = fused(matrix[l * kCount + k], its[l], loss);
    }
  }
}

// A block a row. The first block has none before it, and the last one none behind.
template <typename Real, Others kOthers>
__global__ void __launch_bounds__(kThreads, 2)
    add_potentials(Groups groups, CellGrid<Real> grid, NearCells near, ListMemory<Real> memory) {
  constexpr int kCount = kPolynomials<Real>;
  __shared__ Chain chain;
  __shared__ double keys[kMostCells];
  const int thread = static_cast<int>(threadIdx.x);
  for_list_rows(groups, memory.plans, [&](const List& list, int row) {
    if (row == (kOthers == Others::kWorse ? list.rows - 1 : 0)) return;
    const int cells = list.plan.cells;
    const int64_t first = memory.first_row(groups, list.number) + static_cast<int64_t>(row) * cells * kCount;
    const double* const moments = memory.moments + first;
    const double* const decays = memory.decays + list.number * kMostCells * kSeries;
    __syncthreads();  // the last row of this block was read there
    for (int c = thread; c < cells; c += kThreads) keys[c] = memory.keys[list.number * kMostCells + c];
#pragma unroll 1
    for (int side = 0; side < 2; side++) {
      const bool above = side == 0;  // where w is above 0, or below
      const bool up = (kOthers == Others::kWorse) == above;
      const double beyond = above ? near.furthest : -near.nearest, margin = above ? near.margin : -near.margin;
      __syncthreads();
#pragma unroll 1
      for (int n = thread; n < cells * kSeries; n += kThreads) {
        const int c = n / kSeries, m = n % kSeries;
        double sum = 0;
#pragma unroll
        for (int k = 0; k < kCount; k++)
          sum = fused(memory.series[((up ? kCount : 0) + k) * kSeries + m], moments[c * kCount + k], sum);
        chain.small[c][m] = sum;
      }
      for (int c = thread; above && c < cells; c += kThreads) {
        const double places = grid.half() * moments[c * kCount + 1];
        chain.counts[c] = moments[c * kCount];
        chain.distances[c] = up ? places : -places;
      }
      __syncthreads();
      add_up(chain, keys, decays, cells, grid.width, up, above);
      __syncthreads();
#pragma unroll 1
      for (int n = thread; n < cells * kCount; n += kThreads) {
        const int c = n / kCount, k = n % kCount, other = first_beyond(keys, cells, c, beyond, up);
        double slope = 0, loss = 0;
        if (above) add_near<Real, kOthers>(keys, moments, memory.matrices, cells, c, k, near, slope, loss);
        if (other >= 0) {
          const double distance = up ? keys[other] - keys[c] : keys[c] - keys[other];
          const double least = grid.width * distance + margin;  // of |w|, between the midsts; above 0
          const double e = exp_negative(least).value;
          const double* const factors = memory.series + ((up ? 0 : kCount) + k) * kSeries;
          double power = 1, slopes = 0, losses = 0;
#pragma unroll
          for (int m = 0; m < kSeries; m++) {
            power *= e;
            const double its = factors[m] * (chain.small[other][m] * power);
            slopes = fused(slope_term(m + 1), its, slopes);
            losses = fused(loss_term(m + 1), its, losses);
          }
          slope += above ? -slopes : slopes;
          loss += losses;
          if (above && k == 0) {
            slope += chain.counts[other];
            loss += fused(chain.counts[other], least, chain.distances[other]);
          }
          if (above && k == 1) loss += (up ? -grid.half() : grid.half()) * chain.counts[other];
        }
        memory.slopes[first + n] = above ? slope : memory.slopes[first + n] + slope;
        if (kOthers == Others::kWorse) memory.losses[first + n] = above ? loss : memory.losses[first + n] + loss;
      }
    }
  });
}

}  // namespace
}  // namespace prefloss::cuda
