// The moments of the cells of each block of a list, and then of all blocks before one, or behind it. Mirrors what
// cpu/long_list/all_pairs.h does in a tree.
#pragma once

#include "memory.cuh"

namespace prefloss::cuda {
namespace {

// A block of threads a block of items: the sums of T_k over the items of each cell, in the order of the items.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 1) sum_moments(Groups groups, ListMemory<Real> memory) {
  constexpr int kCount = kPolynomials<Real>;
  __shared__ double polynomials[kThreads][kCount];  // of items sorted by cell
  __shared__ int cell_of[kThreads], begin[kMostCells], end[kMostCells];
  const int thread = static_cast<int>(threadIdx.x);
  for_list_rows(groups, memory.plans, [&](const List& list, int row) {
    const int cells = list.plan.cells, first = row * list.plan.block;
    const int last = first + list.plan.block < list.size ? first + list.plan.block : list.size;
    double* const moments =
        memory.moments + memory.first_row(groups, list.number) + static_cast<int64_t>(row) * cells * kCount;
#pragma unroll 1
    for (int done = first; done < last; done += kThreads) {
      const int place = done + thread;
      const bool is_there = place < last;
      const int cell = is_there ? memory.cells[list.begin + place] : kMostCells;
      cell_of[thread] = cell;
      for (int c = thread; c < cells; c += kThreads) begin[c] = end[c] = 0;
      __syncthreads();
      if (is_there) {
        int smaller = 0, before = 0, same = 0;
#pragma unroll 4
        for (int other = 0; other < kThreads; other++) {
          smaller += cell_of[other] < cell ? 1 : 0;
          same += cell_of[other] == cell ? 1 : 0;
          before += cell_of[other] == cell && other < thread ? 1 : 0;
        }
        if (before == 0) begin[cell] = smaller;
        if (before == 0) end[cell] = smaller + same;
        chebyshev<kCount>(memory.places[list.begin + place], polynomials[smaller + before]);
      }
      __syncthreads();
#pragma unroll 1
      for (int n = thread; n < cells * kCount; n += kThreads) {
        const int cell_here = n / kCount, k = n % kCount;
        double sum = done == first ? 0 : moments[n];
        for (int item = begin[cell_here]; item < end[cell_here]; item++) sum += polynomials[item][k];
        moments[n] = sum;
      }
      __syncthreads();
    }
  });
}

// Columns of rows that a block has at a time, and threads that share one.
constexpr int kColumns = 8, kShares = kThreads / kColumns;

// Row by row, the sum of all rows behind, or before, in the place of the row.
template <typename Real, Others kOthers>
__global__ void __launch_bounds__(kThreads, 2) add_rows(Groups groups, ListMemory<Real> memory) {
  __shared__ double of_shares[kShares][kColumns];
  const int column_here = static_cast<int>(threadIdx.x) % kColumns, share = static_cast<int>(threadIdx.x) / kColumns;
  for_rows(groups.count(), [&](int64_t number) {
    const List list(groups, memory.plans, number);
    const int width = list.plan.cells * kPolynomials<Real>, a_share = (list.rows + kShares - 1) / kShares;
    const int begin = share * a_share < list.rows ? share * a_share : list.rows;
    const int end = begin + a_share < list.rows ? begin + a_share : list.rows;
    for_parts(list.rows == 0 ? 0 : (width + kColumns - 1) / kColumns, [&](int64_t part) {
      const int64_t column = part * kColumns + column_here;
      const bool is_there = column < width;
      double* const moments = memory.moments + memory.first_row(groups, number) + column;
      double sum = 0;
      for (int row = begin; is_there && row < end; row++) sum += moments[static_cast<int64_t>(row) * width];
      of_shares[share][column_here] = sum;
      __syncthreads();
      sum = 0;
      if (kOthers == Others::kBetter) {
        for (int other = 0; other < share; other++) sum += of_shares[other][column_here];
      } else {
        for (int other = kShares; --other > share;) sum += of_shares[other][column_here];
      }
      for (int n = 0; is_there && n < end - begin; n++) {
        double& its = moments[static_cast<int64_t>(kOthers == Others::kBetter ? begin + n : end - 1 - n) * width];
        const double before = sum;
        sum += its;
        its = before;
      }
      __syncthreads();  // the next columns of this block write there again
    });
  });
}

}  // namespace
}  // namespace prefloss::cuda
