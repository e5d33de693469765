// Cells of scores, of width 2, and the sums over all pairs of an item of one and an item of another. Compiled once per
// instruction set, so everything here has internal linkage.
//
// softplus and sigma are analytic in the strip |Im z| < pi. So on a pair of cells they are polynomials to the last bit;
// and on cells far apart a few exponentials, besides what is linear. Either way the sum over the pairs of two cells'
// items factorises into sums over the items of each.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../elementary.h"
#include "../threads.h"

namespace prefloss::cpu {
namespace {

constexpr double kPi = 3.14159265358979323846;

// How many polynomials. softplus(w) is max(w, 0) and a series in exp(-|w|), log(1 + x): from |w| = kSeriesFrom on, so
// many terms of it, and one less of its derivative and its square, are exact to the last bit of Real.
template <typename Real>
constexpr int kPolynomials = sizeof(Real) == sizeof(double) ? 20 : 12;
constexpr int kSeries = 8;
template <typename Real>
constexpr double kSeriesFrom = (sizeof(Real) == sizeof(double) ? 38.0 : 18.0) / (kSeries - 1);
// Cells no further apart than this need no series: there are too few of them.
constexpr double kNearby = 8;

// The Chebyshev polynomials of u in [-1, 1].
template <int kCount>
void chebyshev(double u, double* values) {
  values[0] = 1;
  values[1] = u;
  for (int k = 2; k < kCount; k++) values[k] = 2 * u * values[k - 1] - values[k - 2];
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

// The coefficients over T_k(u) T_l(v) of functions of w = center + v - u.
template <int kCount>
struct CellPair {
  double loss[kCount][kCount], slope[kCount][kCount], slope_turned[kCount][kCount];  // [l][k], [l][k], [k][l]

  // softplus(w) and sigma(w).
  void set(const Interpolation<kCount>& interpolation, double center) {
    double values[2][kCount][kCount];  // at u[m], v[n]
    for (int m = 0; m < kCount; m++) {
      for (int n = 0; n < kCount; n++) {
        const double w = center + interpolation.nodes[n] - interpolation.nodes[m], e = std::exp(-std::abs(w));
        values[0][m][n] = std::log1p(e) + std::max(w, 0.0);
        values[1][m][n] = (w < 0 ? e : 1) / (1 + e);
      }
    }
    const auto to_coefficients = [&](const double (&value)[kCount][kCount], double (&coefficients)[kCount][kCount]) {
      double half[kCount][kCount] = {};  // over u: [k][n], then over v: [l][k]
      for (int k = 0; k < kCount; k++) {
        for (int m = 0; m < kCount; m++) {
          for (int n = 0; n < kCount; n++) half[k][n] += interpolation.transform[k][m] * value[m][n];
        }
      }
      for (int l = 0; l < kCount; l++) {
        for (int k = 0; k < kCount; k++) {
          coefficients[l][k] = 0;
          for (int n = 0; n < kCount; n++) coefficients[l][k] += half[k][n] * interpolation.transform[l][n];
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

// exp(-m by), with m = 1 at place 0, of a distance that is often the one before.
struct Decay {
  double by = 0, powers[kSeries] = {1, 1, 1, 1, 1, 1, 1, 1};

  void set(double distance) {
    if (distance == by) return;
    by = distance;
#pragma omp simd
    for (int m = 0; m < kSeries; m++) powers[m] = exp_negative((m + 1) * distance).value;
  }
};

// Of numbers x: the sums of exp(m x), with m = 1 at place 0.
struct Exponentials {
  double sum[kSeries] = {};

  void add(const Exponentials& other) {
#pragma omp simd
    for (int m = 0; m < kSeries; m++) sum[m] += other.sum[m];
  }

  // Of x - decay.by.
  Exponentials shifted(const Decay& decay) const {
    Exponentials sums;
#pragma omp simd
    for (int m = 0; m < kSeries; m++) sums.sum[m] = decay.powers[m] * sum[m];
    return sums;
  }
};

// log(1 + x) in powers of x, with x at place 0; the coefficients over T_k(u) of exp(m u); and those of the terms
// x / (1 + x) is the sum of, where x = exp(u). Each for u, and for -u.
template <typename Real>
struct Series {
  static constexpr int kCount = kPolynomials<Real>;
  double loss[kSeries], exponential[2][kCount][kSeries] = {}, slope[2][kSeries][kCount];

  explicit Series(const Interpolation<kCount>& interpolation) {
    for (int m = 1; m <= kSeries; m++) {
      const double sign = m % 2 == 1 ? 1 : -1;
      loss[m - 1] = sign / m;
      for (const bool turned : {false, true}) {
        for (int n = 0; n < kCount; n++) {
          const double u = turned ? -interpolation.nodes[n] : interpolation.nodes[n], e = std::exp(m * u);
          for (int k = 0; k < kCount; k++) exponential[turned][k][m - 1] += interpolation.transform[k][n] * e;
        }
        for (int k = 0; k < kCount; k++) slope[turned][m - 1][k] = sign * exponential[turned][k][m - 1];
      }
    }
  }

  // Of the u in a cell, or, turned, of the -u.
  Exponentials of(const double* moments, bool turned) const {
    Exponentials sums;
    add_product(exponential[turned], moments, sums.sum);
    return sums;
  }

  // The losses' part log(1 + exp(-|w|)) of an item at u, or, turned, at -u, over T_k(u).
  void add_losses(const Exponentials& others, bool turned, double* losses) const {
    for (int m = 0; m < kSeries; m++) {
      for (int k = 0; k < kCount; k++) losses[k] += slope[turned][m][k] * others.sum[m] / (m + 1);
    }
  }
};

// How the items of two sets are compared, and the matrices of those pairs of cells that are not far apart. With
// distance d of their keys, w = x_worse - x_better + margin lies within 2 of 2d + margin. The loss is softplus(w) -
// wrong w.
template <typename Real>
struct Relation {
  double margin = 0, wrong = 0;
  double nearest = 0, furthest = -1;  // distances that have a matrix
  bool has_far = false;               // whether there are others
  std::vector<CellPair<kPolynomials<Real>>> matrices;

  // `range`: the greatest distance there is.
  void prepare(const Interpolation<kPolynomials<Real>>& interpolation, double range, int threads) {
    has_far = range > kNearby;
    const double reach = has_far ? kSeriesFrom<Real> + 2 : HUGE_VAL;
    nearest = std::max(-range, std::ceil((-reach - margin) / 2));
    furthest = std::min(range, std::floor((reach - margin) / 2));
    const int64_t count = furthest >= nearest ? static_cast<int64_t>(furthest - nearest) + 1 : 0;
    matrices.resize(static_cast<size_t>(count));
    for_chunks(count, threads, [&](int64_t n) {
      matrices[static_cast<size_t>(n)].set(interpolation, 2 * (nearest + static_cast<double>(n)) + margin);
    });
  }

  const CellPair<kPolynomials<Real>>& at(double distance) const {
    return matrices[static_cast<size_t>(distance - nearest)];
  }
};

// Of numbers x: how many, and the sums of x and x^2.
struct Powers {
  double count = 0, first = 0, second = 0;

  static Powers of(double x) { return {1, x, x * x}; }

  void add(const Powers& other) {
    count += other.count;
    first += other.first;
    second += other.second;
  }

  // Of x + by.
  Powers shifted(double by) const {
    if (count == 0) return {};
    return {count, first + by * count, second + by * (2 * first + by * count)};
  }
};

// The sum of (x - y)^2 over all x and y.
inline double squares_of_differences(const Powers& x, const Powers& y) {
  return y.count * x.second - 2 * y.first * x.first + x.count * y.second;
}

}  // namespace
}  // namespace prefloss::cpu
