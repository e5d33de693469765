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

#include "../../elementary.h"
#include "../threads.h"

namespace prefloss::cpu {
namespace {

constexpr double kPi = 3.14159265358979323846;

// How many polynomials, and how wide a cell may be. Between opposite corners of two cells sigma grows by exp(2 width),
// and so does what a rounding of the largest value is of the smallest.
template <typename Real>
constexpr int kPolynomials = sizeof(Real) == sizeof(double) ? 16 : 12;
template <typename Real>
constexpr double kWidest = sizeof(Real) == sizeof(double) ? 1 : 2;

// The Chebyshev polynomials of t in [-1, 1].
template <int kCount>
void chebyshev(double t, double* values) {
  values[0] = 1;
  values[1] = t;
  for (int k = 2; k < kCount; k++) values[k] = 2 * t * values[k - 1] - values[k - 2];
}

// A sum of them at t, and its derivative there.
struct Polynomial {
  double value, derivative;
};

template <int kCount>
Polynomial evaluate(const double* coefficients, double t) {
  double value = coefficients[0], derivative = 0, first[2] = {1, t}, second[2] = {0, 1};  // T_k, and U_(k - 1)
  for (int k = 1; k < kCount; k++) {
    value += coefficients[k] * first[1];
    derivative += k * coefficients[k] * second[1];
    const double next = 2 * t * first[1] - first[0], next_second = 2 * t * second[1] - second[0];
    first[0] = first[1], first[1] = next;
    second[0] = second[1], second[1] = next_second;
  }
  return {value, derivative};
}

// cos(n pi / (2 kCount)). A large argument would be rounded by more than its cosine may err.
template <int kCount>
double cosine(int n) {
  n %= 4 * kCount;
  if (n > 2 * kCount) n = 4 * kCount - n;
  return n > kCount ? -std::cos((2 * kCount - n) * kPi / (2 * kCount)) : std::cos(n * kPi / (2 * kCount));
}

// From values at the zeros of T_kCount to coefficients over T_k.
template <int kCount>
struct Interpolation {
  double nodes[kCount], transform[kCount][kCount];  // [k][n]

  Interpolation() {
    for (int n = 0; n < kCount; n++) nodes[n] = cosine<kCount>(2 * n + 1);
    for (int k = 0; k < kCount; k++) {
      for (int n = 0; n < kCount; n++)
        transform[k][n] = (k == 0 ? 1.0 : 2.0) / kCount * cosine<kCount>(k * (2 * n + 1));
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
