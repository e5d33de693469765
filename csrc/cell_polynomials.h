// Cells of scores and the polynomials on them: what the linear time of long lists is made of on the CPU
// (cpu/long_list/) and on the GPU (cuda/long_list/).
//
// Everything here has internal linkage: the header is compiled once per instruction set, and the linker must never mix
// those.
#pragma once

#include <algorithm>
#include <cmath>

#include "elementary.h"

namespace prefloss {
namespace {

constexpr double kPi = 3.14159265358979323846;

// How many polynomials, and how wide a cell may be. Between opposite corners of two cells sigma grows by exp(2 width),
// and so does what a rounding of the largest value is of the smallest.
template <typename Real>
constexpr int kPolynomials = sizeof(Real) == sizeof(double) ? 16 : 12;
template <typename Real>
constexpr double kWidest = sizeof(Real) == sizeof(double) ? 1 : 2;

// Cells of the scores beta x, each as wide in the rewards x as a power of two. So an item's cell, and its place in it,
// are exact whatever the rewards are, and two items' distance is as exact as the difference of their rewards.
template <typename Real>
struct CellGrid {
  double width = 0;  // of a cell, in scores

  explicit CellGrid(double beta) : beta_(std::abs(beta)), sign_(beta < 0 ? -1 : 1) {
    // Where beta is tiny, or 0, all scores are nearly one, whatever the width.
    const int exponent = static_cast<int>(std::clamp(std::floor(std::log2(kWidest<Real> / beta_)), -1021.0, 500.0));
    reward_width_ = std::ldexp(1.0, exponent);
    inverse_ = std::ldexp(1.0, -exponent);
    width = beta_ * reward_width_;
  }

  // Half of the width, as a divisor of places.
  PREFLOSS_HOST_DEVICE double half() const { return width > 0 ? width / 2 : 1; }

  // A reward with the sign of beta; its score is beta() times that.
  PREFLOSS_HOST_DEVICE double signed_reward(Real reward) const { return sign_ * static_cast<double>(reward); }
  PREFLOSS_HOST_DEVICE double beta() const { return beta_; }

  // The cell with the key k has the scores from width k on.
  PREFLOSS_HOST_DEVICE double key(Real reward) const { return floor(signed_reward(reward) * inverse_); }

  // How far a score lies from the midst of its own cell.
  PREFLOSS_HOST_DEVICE double place(Real reward, double its_key) const {
    return beta_ * ((signed_reward(reward) - reward_width_ * its_key) - reward_width_ / 2);
  }

  // And from the midst of any other.
  PREFLOSS_HOST_DEVICE double score(Real reward, double from) const {
    const double its = key(reward);
    return width * (its - from) + place(reward, its);
  }

 private:
  double beta_, sign_, reward_width_, inverse_;
};

// The Chebyshev polynomials of t in [-1, 1].
template <int kCount>
PREFLOSS_HOST_DEVICE void chebyshev(double t, double* values) {
  values[0] = 1;
  values[1] = t;
  for (int k = 2; k < kCount; k++) values[k] = 2 * t * values[k - 1] - values[k - 2];
}

// A sum of them at t, and its derivative there.
struct Polynomial {
  double value, derivative;
};

template <int kCount>
PREFLOSS_HOST_DEVICE Polynomial evaluate(const double* coefficients, double t) {
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
PREFLOSS_HOST_DEVICE double cosine(int n) {
  n %= 4 * kCount;
  if (n > 2 * kCount) n = 4 * kCount - n;
#if defined(__CUDA_ARCH__)
  return cospi(n / (2.0 * kCount));  // cos keeps digits of pi on the stack
#else
  return n > kCount ? -cos((2 * kCount - n) * kPi / (2 * kCount)) : cos(n * kPi / (2 * kCount));
#endif
}

// From values at the zeros of T_kCount, cosines, to coefficients over T_k: node n, and what its value is multiplied by.
template <int kCount>
PREFLOSS_HOST_DEVICE double interpolation_node(int n) {
  return cosine<kCount>(2 * n + 1);
}

template <int kCount>
PREFLOSS_HOST_DEVICE double interpolation_factor(int k, int n) {
  return (k == 0 ? 1.0 : 2.0) / kCount * cosine<kCount>(k * (2 * n + 1));
}

// log(1 + x) in powers of x = exp(-|w|). From |w| = kSeriesFrom on, so many terms of it, and one less of its
// derivative, are exact to the last bit of Real.
constexpr int kSeries = 8;
template <typename Real>
constexpr double kSeriesFrom = (sizeof(Real) == sizeof(double) ? 38.0 : 18.0) / (kSeries - 1);

// How exp(-|w|) of a pair comes about: exp(w), a product, will do; or the smaller one of two products, exp(w) and
// exp(-w); or it is computed.
enum class Way { kProduct, kSmallerProduct, kExponential };

// No |w| may be greater. In float64 a rounding of a score is already too much for the second.
constexpr double kGreatestProduct = 40;
template <typename Real>
constexpr double kGreatestSmallerProduct = sizeof(Real) == sizeof(double) ? 0 : 650;

// Where no |w| is greater than this.
template <typename Real>
PREFLOSS_HOST_DEVICE constexpr Way way_of(double greatest) {
  return greatest <= kGreatestProduct                ? Way::kProduct
         : greatest <= kGreatestSmallerProduct<Real> ? Way::kSmallerProduct
                                                     : Way::kExponential;
}

// How many factors 1 + exp(w), with no w greater than `logit`, have a product below 2^1000.
PREFLOSS_HOST_DEVICE int factors_below_overflow(double logit) { return static_cast<int>(1000 / (1.45 * logit + 1)); }

// exp(x) and exp(-x).
struct BothWays {
  double up, down;

  PREFLOSS_HOST_DEVICE static BothWays of(double x) {
    const double e = exp_negative(absolute(x)).value;
    return x < 0 ? BothWays{e, 1 / e} : BothWays{1 / e, e};
  }
};

}  // namespace
}  // namespace prefloss
