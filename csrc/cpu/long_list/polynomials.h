// softplus and sigma on a pair of cells of scores, as polynomials. Compiled once per instruction set, so everything
// here has internal linkage.
//
// Both functions are analytic in the strip |Im z| < pi. So for items that lie in two cells they are polynomials of the
// items' places in their cells to the last bit, and the sum over all pairs of them factorises: items to moments,
// moments times moments, moments to items.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../cell_polynomials.h"
#include "../threads.h"

namespace prefloss::cpu {
namespace {

// From values at the zeros of T_kCount to coefficients over T_k.
template <int kCount>
struct Interpolation {
  double nodes[kCount], transform[kCount][kCount];  // [k][n]

  Interpolation() {
    for (int n = 0; n < kCount; n++) nodes[n] = interpolation_node<kCount>(n);
    for (int k = 0; k < kCount; k++) {
      for (int n = 0; n < kCount; n++) transform[k][n] = interpolation_factor<kCount>(k, n);
    }
  }
};

// The coefficients over T_k(u) T_l(v) of functions of w = center + half (v - u).
template <int kCount>
struct CellPair {
  double loss[kCount][kCount], slope[kCount][kCount], slope_turned[kCount][kCount];  // [l][k], [l][k], [k][l]

  // softplus(w) and sigma(w).
  void set(const Interpolation<kCount>& interpolation, double center, double half) {
    double values[2][kCount][kCount];  // at u[m], v[n]
    for (int m = 0; m < kCount; m++) {
      for (int n = 0; n < kCount; n++) {
        const double w = center + half * (interpolation.nodes[n] - interpolation.nodes[m]), e = std::exp(-std::abs(w));
        values[0][m][n] = std::log1p(e) + std::max(w, 0.0);
        values[1][m][n] = (w < 0 ? e : 1) / (1 + e);
      }
    }
    const auto to_coefficients = [&](const double (&value)[kCount][kCount], double (&coefficients)[kCount][kCount]) {
      double half_done[kCount][kCount] = {};  // over u: [k][n], then over v: [l][k]
      for (int k = 0; k < kCount; k++) {
        for (int m = 0; m < kCount; m++) {
          for (int n = 0; n < kCount; n++) half_done[k][n] += interpolation.transform[k][m] * value[m][n];
        }
      }
      for (int l = 0; l < kCount; l++) {
        for (int k = 0; k < kCount; k++) {
          coefficients[l][k] = 0;
          for (int n = 0; n < kCount; n++) coefficients[l][k] += half_done[k][n] * interpolation.transform[l][n];
        }
      }
    };
    to_coefficients(values[0], loss);
    to_coefficients(values[1], slope);
    for (int k = 0; k < kCount; k++) {
      for (int l = 0; l < kCount; l++) slope_turned[k][l] = slope[l][k];
    }
  }
};

// product[column] += matrix[row][column] vector[row].
template <int kRows, int kColumns>
void add_product(const double (&matrix)[kRows][kColumns], const double* vector, double (&product)[kColumns]) {
  for (int row = 0; row < kRows; row++) {
#pragma omp simd
    for (int column = 0; column < kColumns; column++)
      product[column] = fused(matrix[row][column], vector[row], product[column]);
  }
}

// product[row] += matrix[row][column] vector[column].
template <int kRows, int kColumns>
void add_product_turned(const double (&matrix)[kRows][kColumns], const double* vector, double* product) {
  for (int row = 0; row < kRows; row++) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int column = 0; column < kColumns; column++) sum += matrix[row][column] * vector[column];
    product[row] += sum;
  }
}

}  // namespace
}  // namespace prefloss::cpu
