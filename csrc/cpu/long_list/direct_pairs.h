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

// softplus(w) over many pairs, a lane at a time: log1p of a product, as LossProduct has it, and max(w, 0).
class DirectLosses {
 public:
  // No w is greater than `logit`. A product that is added has kDirectRows factors 1 + exp(w).
  explicit DirectLosses(double logit) : most_(factors_below_overflow(logit) / kDirectRows) {}

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
  alignas(64) double up[kDirectRows], down[kDirectRows], rewards[kDirectRows], directions[kDirectRows];
  alignas(64) double slopes[kDirectRows][kLanes], curvatures[kDirectRows][kLanes], bends[kDirectRows][kLanes];

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

// Functions of numbers alone: the compiler vectorises no loop over structures.
inline double above_0(double w) { return w > 0 ? w : 0.0; }

// exp(w), or exp(-|w|), of a pair whose better item has the first two; `margin_up` is exp of the margin.
template <Way kWay>
PREFLOSS_HOST_DEVICE double exponential(double up, double down, double other_up, double other_down, double w,
                                        double margin_up, double margin_down) {
  if (kWay == Way::kExponential) return exp_negative(absolute(w)).value;
  const double above = down * other_up * margin_up;
  if (kWay == Way::kProduct) return above;
  const double below = up * other_down * margin_down;
  return above < below ? above : below;
}

// sigma(w), of a pair with that e, where inverse is 1 / (1 + e).
template <Way kWay>
PREFLOSS_HOST_DEVICE double sigma_of(double e, double w, double inverse) {
  return kWay == Way::kProduct || w < 0 ? e * inverse : inverse;
}

// All pairs of kDirectRows rows and kLanes others, which share divisions.
template <Way kWay, Wanted kWanted>
PREFLOSS_HOST_DEVICE void add_all(DirectRows<kWanted>& rows, const DirectItems& others, DirectLosses& losses,
                                  const Logit& logit) {
  constexpr bool kCurvatures = kWanted != Wanted::kSlopes, kBends = kWanted == Wanted::kBends;
  static_assert(kDirectRows == 4);
  const double up_a = rows.up[0], up_b = rows.up[1], up_c = rows.up[2], up_d = rows.up[3];
  const double down_a = rows.down[0], down_b = rows.down[1], down_c = rows.down[2], down_d = rows.down[3];
  const double a = rows.rewards[0], b = rows.rewards[1], c = rows.rewards[2], d = rows.rewards[3];
  const Logit its = logit;
  const double *up = others.up, *down = others.down, *rewards = others.rewards;
  double (*__restrict slopes)[kLanes] = rows.slopes;
  double* __restrict other_slopes = others.slopes;
  alignas(64) double bent[kDirectRows][kLanes], product[kLanes], hinge[kLanes];
#pragma omp simd
  for (int lane = 0; lane < kLanes; lane++) {
    const double x = kWay == Way::kProduct ? 0 : rewards[lane], its_up = up[lane],
                 its_down = kWay == Way::kSmallerProduct ? down[lane] : 0;
    const double w_a = fused(its.beta, x - a, its.margin), w_b = fused(its.beta, x - b, its.margin),
                 w_c = fused(its.beta, x - c, its.margin), w_d = fused(its.beta, x - d, its.margin);
    const double e_a = exponential<kWay>(up_a, down_a, its_up, its_down, w_a, its.up, its.down),
                 e_b = exponential<kWay>(up_b, down_b, its_up, its_down, w_b, its.up, its.down),
                 e_c = exponential<kWay>(up_c, down_c, its_up, its_down, w_c, its.up, its.down),
                 e_d = exponential<kWay>(up_d, down_d, its_up, its_down, w_d, its.up, its.down);
    const double one_a = 1 + e_a, one_b = 1 + e_b, one_c = 1 + e_c, one_d = 1 + e_d;
    const double one_ab = one_a * one_b, one_cd = one_c * one_d, inverse = 1 / (one_ab * one_cd);
    const double of_ab = inverse * one_cd, of_cd = inverse * one_ab;
    const double inverse_a = of_ab * one_b, inverse_b = of_ab * one_a, inverse_c = of_cd * one_d,
                 inverse_d = of_cd * one_c;
    const double sigma_a = sigma_of<kWay>(e_a, w_a, inverse_a), sigma_b = sigma_of<kWay>(e_b, w_b, inverse_b),
                 sigma_c = sigma_of<kWay>(e_c, w_c, inverse_c), sigma_d = sigma_of<kWay>(e_d, w_d, inverse_d);
    slopes[0][lane] += sigma_a;
    slopes[1][lane] += sigma_b;
    slopes[2][lane] += sigma_c;
    slopes[3][lane] += sigma_d;
    other_slopes[lane] += (sigma_a + sigma_b) + (sigma_c + sigma_d);
    if (kCurvatures) {
      bent[0][lane] = e_a * inverse_a * inverse_a;
      bent[1][lane] = e_b * inverse_b * inverse_b;
      bent[2][lane] = e_c * inverse_c * inverse_c;
      bent[3][lane] = e_d * inverse_d * inverse_d;
    }
    const double u = fused(e_a, e_b, e_a + e_b), v = fused(e_c, e_d, e_c + e_d);
    product[lane] = fused(u, v, u + v);
    hinge[lane] = kWay == Way::kProduct ? 0 : (above_0(w_a) + above_0(w_b)) + (above_0(w_c) + above_0(w_d));
  }
  for (int lane = 0; lane < kLanes && kCurvatures; lane++) {
    for (int row = 0; row < kDirectRows; row++) rows.curvatures[row][lane] += bent[row][lane];
    others.curvatures[lane] += (bent[0][lane] + bent[1][lane]) + (bent[2][lane] + bent[3][lane]);
  }
  for (int row = 0; row < kDirectRows && kBends; row++) {
    for (int lane = 0; lane < kLanes; lane++) {
      rows.bends[row][lane] += bent[row][lane] * others.directions[lane];
      others.bends[lane] += bent[row][lane] * rows.directions[row];
    }
  }
  losses.add(product, hinge);
}

// The pairs of rows and kLanes others for which counted(row, lane) holds. The margin is for those for which
// ranked(row, lane) holds.
template <Way kWay, Wanted kWanted, typename Counted, typename Ranked>
PREFLOSS_HOST_DEVICE void add_some(DirectRows<kWanted>& rows, const DirectItems& others, DirectLosses& losses,
                                   const Logit& logit, const Counted& counted, const Ranked& ranked) {
  constexpr bool kCurvatures = kWanted != Wanted::kSlopes, kBends = kWanted == Wanted::kBends;
  const Logit its = logit;
  const double *up = others.up, *down = others.down, *rewards = others.rewards;
  alignas(64) double slope[kLanes] = {}, curvature[kLanes] = {}, bend[kLanes] = {};
  alignas(64) double product[kLanes] = {}, hinge[kLanes] = {};
  for (int row = 0; row < rows.count; row++) {
    const double its_up = rows.up[row], its_down = rows.down[row], reward = rows.rewards[row],
                 direction = rows.directions[row];
    double* __restrict row_slopes = rows.slopes[row];
    double* __restrict row_curvatures = rows.curvatures[row];
    double* __restrict row_bends = rows.bends[row];
#pragma omp simd
    for (int lane = 0; lane < kLanes; lane++) {
      const bool is_ranked = ranked(row, lane), is_counted = counted(row, lane);
      const double margin = is_ranked ? its.margin : 0.0, margin_up = is_ranked ? its.up : 1.0,
                   margin_down = is_ranked ? its.down : 1.0;
      const double w = kWay == Way::kProduct ? 0 : fused(its.beta, rewards[lane] - reward, margin);
      const double found = exponential<kWay>(its_up, its_down, up[lane], kWay == Way::kSmallerProduct ? down[lane] : 0,
                                             w, margin_up, margin_down);
      const double e = is_counted ? found : 0.0, inverse = 1 / (1 + e),
                   sigma = is_counted ? sigma_of<kWay>(e, w, inverse) : 0.0;
      if (kWay != Way::kProduct) hinge[lane] += is_counted ? above_0(w) : 0.0;
      product[lane] += fused(product[lane], e, e);
      slope[lane] += sigma;
      row_slopes[lane] += sigma;
      if constexpr (kCurvatures) {
        const double bent = e * inverse * inverse;
        curvature[lane] += bent;
        row_curvatures[lane] += bent;
        if constexpr (kBends) {
          bend[lane] += bent * direction;
          row_bends[lane] += bent * others.directions[lane];
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
