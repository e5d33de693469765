// Pairs that are visited one by one, in float64. Compiled once per instruction set, so everything here has internal
// linkage.
//
// exp(w) of a pair is the product of a number of each item: no exponential a pair. Where a product could overflow, each
// pair takes its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../../cell_polynomials.h"

namespace prefloss::cpu {
namespace {

constexpr int kLanes = 8, kDirectRows = 4;  // so many worse items meet so many better ones at a time

// What is wanted of an item's pairs: the sums of sigma(w); also those of its derivative; also those of the derivative
// times the other item's direction.
enum class Wanted { kSlopes, kCurvatures, kBends };

// One each an item. Where the sum of its pairs' softplus(w) is wanted, it is in `losses`.
struct ItemSums {
  double *slopes = nullptr, *curvatures = nullptr, *bends = nullptr, *losses = nullptr;
  const double* directions = nullptr;

  Wanted wanted() const { return bends ? Wanted::kBends : curvatures ? Wanted::kCurvatures : Wanted::kSlopes; }
};

// Calls body(std::integral_constant) of what is wanted.
template <typename Body>
auto with_wanted(Wanted wanted, const Body& body) {
  if (wanted == Wanted::kBends) return body(std::integral_constant<Wanted, Wanted::kBends>());
  if (wanted == Wanted::kCurvatures) return body(std::integral_constant<Wanted, Wanted::kCurvatures>());
  return body(std::integral_constant<Wanted, Wanted::kSlopes>());
}

// So many products of kDirectRows numbers 1 + exp(w) may be multiplied, where no w is greater than `logit`: what they
// come to is below 2^1000.
inline int most_products(double logit) { return factors_below_overflow(logit) / kDirectRows; }

// softplus(w) over many pairs, a lane at a time: log1p of a product, as LossProduct has it, and max(w, 0).
class DirectLosses {
 public:
  // No product is greater than exp(logit).
  explicit DirectLosses(double logit) : most_(most_products(logit)) {}

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

// What is taken of an item: exp of its score, for the first way, and of minus that, for the second; its reward, where
// these do not do; its direction. And its sums.
struct DirectItems {
  const double *up = nullptr, *down = nullptr, *rewards = nullptr, *directions = nullptr;
  double *slopes = nullptr, *curvatures = nullptr, *bends = nullptr;
};

// Better items, and what they add up over the lanes.
template <Wanted kWanted>
struct DirectRows {
  static constexpr bool kCurvatures = kWanted != Wanted::kSlopes, kBends = kWanted == Wanted::kBends;
  int count;
  double up[kDirectRows], down[kDirectRows], rewards[kDirectRows], directions[kDirectRows];
  double slopes[kDirectRows][kLanes], curvatures[kDirectRows][kLanes], bends[kDirectRows][kLanes];

  explicit DirectRows(int rows) : count(rows) {
    for (int row = 0; row < count; row++) {
      clear(slopes[row]);
      if (kCurvatures) clear(curvatures[row]);
      if (kBends) clear(bends[row]);
    }
  }

 private:
  static void clear(double (&lanes)[kLanes]) {
    for (double& lane : lanes) lane = 0;
  }
};

// w = beta (a worse item's reward - a better one's) + margin.
struct Logit {
  double beta = 1, margin = 0, up = 1, down = 1;  // exp of the margin, and of minus that
};

// The pairs of rows and kLanes others for which counted(row, lane) holds. compared(row, lane) is how.
template <Way kWay, Wanted kWanted, typename Counted, typename Compared>
PREFLOSS_HOST_DEVICE void add_direct(DirectRows<kWanted>& rows, const DirectItems& others, DirectLosses& losses,
                                     const Counted& counted, const Compared& compared) {
  constexpr bool kCurvatures = kWanted != Wanted::kSlopes, kBends = kWanted == Wanted::kBends;
  double slope[kLanes] = {}, curvature[kLanes] = {}, bend[kLanes] = {}, product[kLanes] = {}, hinge[kLanes] = {};
  for (int row = 0; row < rows.count; row++) {
    const double up = rows.up[row], down = rows.down[row], reward = rows.rewards[row], direction = rows.directions[row];
    double* __restrict row_slopes = rows.slopes[row];
    double* __restrict row_curvatures = rows.curvatures[row];
    double* __restrict row_bends = rows.bends[row];
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
        const double its = e * inverse * inverse;
        curvature[lane] += its;
        row_curvatures[lane] += its;
        if constexpr (kBends) {
          bend[lane] += its * direction;
          row_bends[lane] += its * others.directions[lane];
        }
      }
    }
  }
  const auto add = [](const double (&lanes)[kLanes], double* sums) {
    for (int lane = 0; lane < kLanes; lane++) sums[lane] += lanes[lane];
  };
  add(slope, others.slopes);
  if (kCurvatures) add(curvature, others.curvatures);
  if (kBends) add(bend, others.bends);
  losses.add(product, hinge);
}

inline double sum_of_lanes(const double (&lanes)[kLanes]) {
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace
}  // namespace prefloss::cpu
