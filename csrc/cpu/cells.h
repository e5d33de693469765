// Cells of scores, of width 2, and what two of them have with each other. Compiled once per instruction set, so
// everything here has internal linkage.
//
// softplus and sigma are analytic in the strip |Im z| < pi. So on a pair of cells they are polynomials to the last bit;
// and on cells far apart softplus is linear or an exponential. Either way the sum over the pairs of two cells' items
// factorises into sums over the items of each.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "chunks.h"

namespace prefloss::cpu {
namespace {

constexpr double kPi = 3.14159265358979323846;

// How many polynomials. From |w| = kSimpleFrom on, softplus(w) is w, or exp(w), and sigma(w) is 1, or exp(w), to the
// last bit of Real.
template <typename Real>
constexpr int kPolynomials = sizeof(Real) == sizeof(double) ? 20 : 12;
template <typename Real>
constexpr double kSimpleFrom = sizeof(Real) == sizeof(double) ? 38 : 18;

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

// The coefficients over T_k(u) T_l(v) of functions of w = center + v - u.
template <int kCount>
struct CellPair {
  double loss[kCount][kCount], slope[kCount][kCount], slope_turned[kCount][kCount];  // [l][k], [l][k], [k][l]
  double square[kCount][kCount];                                                     // [l][k]

  // softplus(w), sigma(w), and softplus(w)^2 - 2 wrong w softplus(w).
  void set(double center, double wrong) {
    double nodes[kCount], transform[kCount][kCount];
    for (int n = 0; n < kCount; n++) nodes[n] = cosine<kCount>(2 * n + 1);
    for (int k = 0; k < kCount; k++) {
      for (int n = 0; n < kCount; n++)
        transform[k][n] = (k == 0 ? 1.0 : 2.0) / kCount * cosine<kCount>(k * (2 * n + 1));
    }
    double values[3][kCount][kCount];  // at u[m], v[n]
    for (int m = 0; m < kCount; m++) {
      for (int n = 0; n < kCount; n++) {
        const double w = center + nodes[n] - nodes[m], e = std::exp(-std::abs(w));
        const double softplus = std::log1p(e) + std::max(w, 0.0);
        values[0][m][n] = softplus;
        values[1][m][n] = (w < 0 ? e : 1) / (1 + e);
        values[2][m][n] = softplus * (softplus - 2 * wrong * w);
      }
    }
    const auto to_coefficients = [&](const double (&value)[kCount][kCount], double (&coefficients)[kCount][kCount]) {
      double half[kCount][kCount] = {};  // over u: [k][n], then over v: [l][k]
      for (int k = 0; k < kCount; k++) {
        for (int m = 0; m < kCount; m++) {
          for (int n = 0; n < kCount; n++) half[k][n] += transform[k][m] * value[m][n];
        }
      }
      for (int l = 0; l < kCount; l++) {
        for (int k = 0; k < kCount; k++) {
          coefficients[l][k] = 0;
          for (int n = 0; n < kCount; n++) coefficients[l][k] += half[k][n] * transform[l][n];
        }
      }
    };
    to_coefficients(values[0], loss);
    to_coefficients(values[1], slope);
    to_coefficients(values[2], square);
    for (int k = 0; k < kCount; k++) {
      for (int l = 0; l < kCount; l++) slope_turned[k][l] = slope[l][k];
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
  bool wide = false;                  // whether there are cells that are further apart, below
  std::vector<CellPair<kPolynomials<Real>>> matrices;

  // `range`: the greatest distance there is.
  void prepare(double range, int threads) {
    nearest = std::max(-range, std::ceil((-kSimpleFrom<Real> - 2 - margin) / 2));
    furthest = std::min(range, std::floor((kSimpleFrom<Real> + 2 - margin) / 2));
    wide = nearest > -range;
    const int64_t count = furthest >= nearest ? static_cast<int64_t>(furthest - nearest) + 1 : 0;
    matrices.resize(static_cast<size_t>(count));
    for_chunks(count, threads, [&](int64_t n) {
      matrices[static_cast<size_t>(n)].set(2 * (nearest + static_cast<double>(n)) + margin, wrong);
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

// Of numbers x: the sums of exp(x), x exp(x) and exp(2x).
struct Exponentials {
  double sum = 0, first = 0, square = 0;

  void add(const Exponentials& other) {
    sum += other.sum;
    first += other.first;
    square += other.square;
  }

  Exponentials shifted(double by) const {
    const double e = std::exp(by);
    if (e == 0) return {};
    return {sum * e, (first + by * sum) * e, square * (e * e)};
  }
};

}  // namespace
}  // namespace prefloss::cpu
