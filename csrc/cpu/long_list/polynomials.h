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

// product[column] += matrix[row][column] vector[row].
template <int kRows, int kColumns>
void add_product(const double (&matrix)[kRows][kColumns], const double* vector, double (&product)[kColumns]) {
  double sums[kColumns];  // which the compiler keeps in registers
  std::copy_n(product, kColumns, sums);
  for (int row = 0; row < kRows; row++) {
#pragma omp simd
    for (int column = 0; column < kColumns; column++)
      sums[column] = fused(matrix[row][column], vector[row], sums[column]);
  }
  std::copy_n(sums, kColumns, product);
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

// From values at the zeros of T_kCount to coefficients over T_k.
template <int kCount>
struct Interpolation {
  double nodes[kCount], transform[kCount][kCount], turned[kCount][kCount];  // [k][n], [n][k]

  Interpolation() {
    for (int n = 0; n < kCount; n++) nodes[n] = interpolation_node<kCount>(n);
    for (int k = 0; k < kCount; k++) {
      for (int n = 0; n < kCount; n++) turned[n][k] = transform[k][n] = interpolation_factor<kCount>(k, n);
    }
  }
};

// The coefficients over T_k(u) T_l(v) of functions of w = center + half (v - u).
template <int kCount>
struct CellPair {
  double loss[kCount][kCount], slope[kCount][kCount], slope_turned[kCount][kCount];  // [l][k], [l][k], [k][l]

  // softplus(w) and sigma(w). Where sigma is nearly 1 its derivative is little: what is interpolated is sigma - 1
  // there, as exact as that is small, and the 1 comes back with the first coefficient, which no derivative has.
  void set(const Interpolation<kCount>& interpolation, double center, double half) {
    const bool is_above = center > 0;
    double values[2][kCount][kCount];  // [n][m], at u[m], v[n]
    for (int n = 0; n < kCount; n++) {
#pragma omp simd
      for (int m = 0; m < kCount; m++) {
        const double w = center + half * (interpolation.nodes[n] - interpolation.nodes[m]),
                     e = exp_negative(absolute(w)).value;
        values[0][n][m] = log1p_positive(e) + (w > 0 ? w : 0.0);
        values[1][n][m] = (is_above ? (w < 0 ? -1.0 : -e) : (w < 0 ? e : 1.0)) / (1 + e);
      }
    }
    const auto to_coefficients = [&](const double (&value)[kCount][kCount], double (&coefficients)[kCount][kCount]) {
      double over_u[kCount][kCount] = {};  // [n][k]
      for (int n = 0; n < kCount; n++) add_product(interpolation.turned, value[n], over_u[n]);
      for (int l = 0; l < kCount; l++) {
        std::fill_n(coefficients[l], kCount, 0.0);
        add_product(over_u, interpolation.transform[l], coefficients[l]);
      }
    };
    to_coefficients(values[0], loss);
    to_coefficients(values[1], slope);
    if (is_above) slope[0][0] += 1;
    for (int k = 0; k < kCount; k++) {
      for (int l = 0; l < kCount; l++) slope_turned[k][l] = slope[l][k];
    }
  }
};

// sums[k][lane] += weights[lane] T_k(t[lane]).
template <int kCount, int kAtOnce>
void add_polynomials(const double* t, const double* weights, double (&sums)[kCount][kAtOnce]) {
  double twice[kAtOnce], before[kAtOnce], now[kAtOnce];
  for (int lane = 0; lane < kAtOnce; lane++) {
    before[lane] = weights[lane];
    now[lane] = t[lane] * weights[lane];
    twice[lane] = 2 * t[lane];
    sums[0][lane] += before[lane];
    sums[1][lane] += now[lane];
  }
  static_assert(kCount % 2 == 0);
  for (int k = 2; k < kCount; k += 2) {  // two at a time, so that nothing is moved
#pragma omp simd
    for (int lane = 0; lane < kAtOnce; lane++) {
      before[lane] = fused(twice[lane], now[lane], -before[lane]);
      now[lane] = fused(twice[lane], before[lane], -now[lane]);
      sums[k][lane] += before[lane];
      sums[k + 1][lane] += now[lane];
    }
  }
}

// moments[k]: the sum over the lanes.
template <int kCount, int kAtOnce>
void sum_lanes(const double (&sums)[kCount][kAtOnce], double* moments) {
  static_assert(kAtOnce == 8);
  double half[kCount][4];
  for (int k = 0; k < kCount; k++) {
    for (int lane = 0; lane < 4; lane++) half[k][lane] = sums[k][lane] + sums[k][lane + 4];
  }
  for (int k = 0; k < kCount; k++) moments[k] = (half[k][0] + half[k][1]) + (half[k][2] + half[k][3]);
}

// A sum of polynomials of an item's place, and its derivative, over U_k, the Chebyshev polynomials of the second kind:
// T_k is (U_k - U_(k - 2)) / 2, and its derivative k U_(k - 1).
template <int kCount>
struct Potential {
  double value[kCount], derivative[kCount] = {};

  // `coefficients`: over T_k.
  explicit Potential(const double* coefficients) {
    value[0] = coefficients[0] - coefficients[2] / 2;
    for (int k = 1; k < kCount; k++) value[k] = (coefficients[k] - (k + 2 < kCount ? coefficients[k + 2] : 0)) / 2;
    for (int k = 1; k < kCount; k++) derivative[k - 1] = k * coefficients[k];
  }

  // At several places; the derivatives where they are wanted.
  template <bool kCurved, int kAtOnce>
  void evaluate(const double* places, double (&values)[kAtOnce], double (&derivatives)[kAtOnce]) const {
    double twice[kAtOnce], before[kAtOnce], now[kAtOnce], sums[kAtOnce], bends[kAtOnce];
    for (int lane = 0; lane < kAtOnce; lane++) {
      twice[lane] = 2 * places[lane];
      before[lane] = 0, now[lane] = 1;
      sums[lane] = value[0], bends[lane] = derivative[0];
    }
    static_assert(kCount % 2 == 0);
    for (int k = 1; k < kCount; k += 2) {  // two at a time, so that nothing is moved
#pragma omp simd
      for (int lane = 0; lane < kAtOnce; lane++) {
        before[lane] = fused(twice[lane], now[lane], -before[lane]);
        sums[lane] = fused(value[k], before[lane], sums[lane]);
        if (kCurved) bends[lane] = fused(derivative[k], before[lane], bends[lane]);
      }
      if (k + 1 == kCount) break;
#pragma omp simd
      for (int lane = 0; lane < kAtOnce; lane++) {
        now[lane] = fused(twice[lane], before[lane], -now[lane]);
        sums[lane] = fused(value[k + 1], now[lane], sums[lane]);
        if (kCurved) bends[lane] = fused(derivative[k + 1], now[lane], bends[lane]);
      }
    }
    for (int lane = 0; lane < kAtOnce; lane++) {
      values[lane] = sums[lane];
      if (kCurved) derivatives[lane] = bends[lane];
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
