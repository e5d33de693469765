// softplus and sigma of two cells as polynomials, and exp of one cell. Mirrors cpu/long_list/polynomials.h and
// far_apart.h.
#pragma once

#include "memory.cuh"

namespace prefloss::cuda {
namespace {

// log(1 + x), and x / (1 + x), as factors of x^m.
__device__ __forceinline__ double loss_term(int m) { return (m % 2 == 0 ? -1.0 : 1.0) / m; }
__device__ __forceinline__ double slope_term(int m) { return m % 2 == 0 ? -1.0 : 1.0; }

// A block a distance, and one for the series.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 1)
    fill_tables(CellGrid<Real> grid, NearCells near, int distances, ListMemory<Real> memory) {
  constexpr int kCount = kPolynomials<Real>, kSquare = kCount * kCount;
  __shared__ double nodes[kCount], transform[kCount][kCount], values[kCount][kCount], half_done[kCount][kCount];
  const int thread = static_cast<int>(threadIdx.x), row = thread / kCount, column = thread % kCount;
  const bool works = thread < kSquare;
  if (thread < kCount) nodes[thread] = interpolation_node<kCount>(thread);
  if (works) transform[row][column] = interpolation_factor<kCount>(row, column);
  __syncthreads();
  for_parts(distances + 1, [&](int64_t part) {
    if (part == distances) {
      for (int n = thread; n < 2 * kCount * kSeries; n += kThreads) {
        const int m = n % kSeries + 1, k = n / kSeries % kCount, turned = n / kSeries / kCount;
        double sum = 0;
        for (int node = 0; node < kCount; node++) {
          const double x = m * (grid.half() * (turned ? -nodes[node] : nodes[node]));
          const BothWays e = BothWays::of(x);
          sum += transform[k][node] * e.up;
        }
        memory.series[n] = sum;
      }
      return;
    }
    double* const matrix = memory.matrices + part * 3 * kSquare;
    const double center = grid.width * (near.nearest + static_cast<double>(part)) + near.margin;
    for (int matrices = 0; matrices < 2; matrices++) {  // of softplus, then of its slope
      const bool slope = matrices == 1;
      if (works) {  // at u[row], v[column]
        const double w = center + grid.half() * (nodes[column] - nodes[row]), e = exp_negative(absolute(w)).value;
        values[row][column] = slope ? (w < 0 ? e : 1) / (1 + e) : log1p_positive(e) + (w < 0 ? 0 : w);
      }
      __syncthreads();
      if (works) {
        double sum = 0;
        for (int m = 0; m < kCount; m++) sum += transform[row][m] * values[m][column];
        half_done[row][column] = sum;
      }
      __syncthreads();
      if (works) {  // T_row(v), T_column(u)
        double sum = 0;
        for (int n = 0; n < kCount; n++) sum += half_done[column][n] * transform[row][n];
        matrix[(slope ? kSquare : 0) + row * kCount + column] = sum;
        if (slope) matrix[2 * kSquare + column * kCount + row] = sum;
      }
      __syncthreads();
    }
  });
}

}  // namespace
}  // namespace prefloss::cuda
