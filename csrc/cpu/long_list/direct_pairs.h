// Pairs that are visited one by one, in float64. Compiled once per instruction set, so everything here has internal
// linkage.
//
// exp(w) of a pair is the product of a number of each item: no exponential a pair. Where a product could overflow, each
// pair takes its own.
#pragma once

#include <algorithm>
#include <cmath>

#include "../../elementary.h"

namespace prefloss::cpu {
namespace {

constexpr int kLanes = 8, kDirectRows = 4;  // so many worse items meet so many better ones at a time

// How exp(-|w|) of a pair comes about: exp(w), a product, will do; or the smaller one of two products, exp(w) and
// exp(-w); or it is computed.
enum class Way { kProduct, kSmallerProduct, kExponential };

// No |w| may be greater. In float64 a rounding of a score is already too much for the second.
constexpr double kGreatestProduct = 40;
template <typename Real>
constexpr double kGreatestSmallerProduct = sizeof(Real) == sizeof(double) ? 0 : 650;

// Where no |w| is greater than this.
template <typename Real>
constexpr Way way_of(double greatest) {
  return greatest <= kGreatestProduct                ? Way::kProduct
         : greatest <= kGreatestSmallerProduct<Real> ? Way::kSmallerProduct
                                                     : Way::kExponential;
}

// Sums over the pairs of an item: of sigma(w), of its derivative, of softplus(w).
struct ItemSums {
  double *slopes = nullptr, *curvatures = nullptr,
         *losses = nullptr;  // one an item; the last two where they are wanted
};

// softplus(w) over many pairs, a lane at a time: log1p of a product, as LossProduct has it, and max(w, 0).
class DirectLosses {
 public:
  // No product is greater than exp(logit). A product of kDirectRows times most_ numbers 1 + exp(w) is below 2^1000.
  explicit DirectLosses(double logit) : most_(static_cast<int>(1000 / (kDirectRows * (1.45 * logit + 1)))) {}

  void add(const double* product, const double* hinge) {
    if (products_ == most_) flush();
    products_++;
    for (int lane = 0; lane < kLanes; lane++) {
      product_[lane] += fused(product_[lane], product[lane], product[lane]);
      sum_[lane] += hinge[lane];
    }
  }

  double total() {
    flush();
    double all = 0;
    for (const double lane : sum_) all += lane;
    return all;
  }

 private:
  double product_[kLanes] = {}, sum_[kLanes] = {};
  int products_ = 0, most_;

  void flush() {
    for (int lane = 0; lane < kLanes; lane++) {
      sum_[lane] += log1p_positive(product_[lane]);
      product_[lane] = 0;
    }
    products_ = 0;
  }
};

// What is taken of an item: exp of its score, for the first way, and of minus that, for the second; and its reward,
// where these do not do.
struct DirectItems {
  const double *up = nullptr, *down = nullptr, *rewards = nullptr;
};

// Better items, and what they add up over the lanes.
template <bool kCurvatures>
struct DirectRows {
  int count;
  double up[kDirectRows], down[kDirectRows], rewards[kDirectRows];
  double slopes[kDirectRows][kLanes], curvatures[kCurvatures ? kDirectRows : 1][kLanes];

  explicit DirectRows(int rows) : count(rows) {
    for (int row = 0; row < count; row++) {
      for (int lane = 0; lane < kLanes; lane++) slopes[row][lane] = 0;
    }
    for (int row = 0; row < (kCurvatures ? count : 0); row++) {
      for (int lane = 0; lane < kLanes; lane++) curvatures[row][lane] = 0;
    }
  }
};

// w = beta (a worse item's reward - a better one's) + margin.
struct Logit {
  double beta = 1, margin = 0, up = 1, down = 1;  // exp of the margin, and of minus that
};

// The pairs of rows and kLanes others for which counted(row, lane) holds. logit(row, lane) is how they are compared.
template <Way kWay, bool kCurvatures, typename Counted, typename Compared>
PREFLOSS_HOST_DEVICE void add_direct(DirectRows<kCurvatures>& rows, const DirectItems& others, double* slopes,
                                     double* curvatures, DirectLosses& losses, const Counted& counted,
                                     const Compared& compared) {
  double slope[kLanes] = {}, curvature[kLanes] = {}, product[kLanes] = {}, hinge[kLanes] = {};
  for (int row = 0; row < rows.count; row++) {
    const double up = rows.up[row], down = rows.down[row], reward = rows.rewards[row];
    double* __restrict row_slopes = rows.slopes[row];
    double* __restrict row_curvatures = rows.curvatures[kCurvatures ? row : 0];
#pragma omp simd
    for (int lane = 0; lane < kLanes; lane++) {
      const Logit logit = compared(row, lane);
      double e, sigma, inverse;
      if constexpr (kWay == Way::kProduct) {
        e = counted(row, lane) ? down * others.up[lane] * logit.up : 0.0;
        inverse = 1 / (1 + e);
        sigma = e * inverse;
      } else {
        const double w =
            counted(row, lane) ? fused(logit.beta, others.rewards[lane] - reward, logit.margin) : -HUGE_VAL;
        if constexpr (kWay == Way::kSmallerProduct) {
          const double above = down * others.up[lane] * logit.up, below = up * others.down[lane] * logit.down;
          e = counted(row, lane) ? (above < below ? above : below) : 0.0;
        } else {
          e = exp_negative(absolute(w)).value;
        }
        inverse = 1 / (1 + e);
        sigma = w < 0 ? e * inverse : inverse;
        hinge[lane] += w > 0 ? w : 0.0;
      }
      product[lane] += fused(product[lane], e, e);
      slope[lane] += sigma;
      row_slopes[lane] += sigma;
      if constexpr (kCurvatures) {
        curvature[lane] += e * inverse * inverse;
        row_curvatures[lane] += e * inverse * inverse;
      }
    }
  }
  for (int lane = 0; lane < kLanes; lane++) slopes[lane] += slope[lane];
  if constexpr (kCurvatures) {
    for (int lane = 0; lane < kLanes; lane++) curvatures[lane] += curvature[lane];
  }
  losses.add(product, hinge);
}

inline double sum_of_lanes(const double (&lanes)[kLanes]) {
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace
}  // namespace prefloss::cpu
