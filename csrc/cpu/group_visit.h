// One pair of a group's items, with every option or with none: its part of the sums, and its slopes. Compiled once per
// instruction set, so everything here has internal linkage.
#pragma once

#include <limits>

#include "../pair_math.h"
#include "group_order.h"

namespace prefloss::cpu {
namespace {

constexpr int kRows = 8;       // items that meet another before its sums go on in float64
constexpr int kSegment = 256;  // others that an item meets, kTile at a time, before its slope does

// x where it is wanted, else infinity, or 0; by its bits, or the compiler would load x under a mask, and not vectorise.
template <typename Real>
PREFLOSS_HOST_DEVICE Real either(bool wanted, Real x, Real other) {
  using Bits = decltype(to_bits(x));
  const Bits keep = Bits(0) - static_cast<Bits>(wanted);
  return from_bits((to_bits(x) & keep) | (to_bits(other) & ~keep));
}

template <typename Real>
PREFLOSS_HOST_DEVICE Real or_infinity(bool wanted, Real x) {
  return either(wanted, x, std::numeric_limits<Real>::infinity());
}

template <typename Real>
PREFLOSS_HOST_DEVICE Real or_zero(bool wanted, Real x) {
  return either(wanted, x, Real(0));
}

// -x where it is wanted.
template <typename Real>
PREFLOSS_HOST_DEVICE Real negated(bool wanted, Real x) {
  using Bits = decltype(to_bits(x));
  return from_bits(to_bits(x) ^ (static_cast<Bits>(wanted) << (8 * sizeof(Real) - 1)));
}

// What pairs have in common.
template <typename Real>
struct PairOptions {
  Formula<Real> formula;
  Real margin, target;
  Real right, wrong;  // the weights of -log sigma(z) and of -log sigma(-z)

  explicit PairOptions(const Options& options)
      : formula(options, false),
        margin(static_cast<Real>(options.margin)),
        target(static_cast<Real>(options.target)),
        right(formula.smoothed(target).right),
        wrong(formula.smoothed(target).wrong) {}
};

// The pairs of different rank, and those of equal rank.
template <typename Real>
struct GroupOptions {
  PairOptions<Real> ranked, tied;
  bool plain, half_ties;
  int64_t large;

  explicit GroupOptions(const Groups& groups)
      : ranked(groups.options),
        tied(of_equal_rank(groups.options)),
        plain(groups.options.are_off()),
        half_ties(groups.half_ties),
        large(groups.large) {}

  // Whether a pair adds softplus of its score and nothing else.
  bool is_softplus() const { return !half_ties && ranked.formula.is_softplus(); }
};

// Whether every pair counts, without a margin, so that a long list's can meet in the order of the scores alone
// (long_list/by_score.h). There each item's losses are not known.
template <typename Real>
bool are_met_by_score(const RankedItems<Real>& items, const GroupOptions<Real>& options) {
  return options.ranked.margin == 0 && items.losses.empty() && (options.half_ties || !items.has_ties());
}

// The derivatives of a pair's term by a - b and, for each of both rewards, by their sum.
template <typename Real>
struct PairSlopes {
  Real difference, sum;
};

// Adds the loss of a pair with difference a - b and total a + b, and what centring adds to it. One that does not count
// adds nothing, whatever its rewards are.
template <bool kPlain, typename Real>
PREFLOSS_HOST_DEVICE PairSlopes<Real> visit(const Formula<Real>& formula, Real difference, Real total, bool counted,
                                            Real margin, Real right, Real wrong, LossProduct<Real>& loss) {
  if constexpr (kPlain) return {loss.add_for_slope(or_infinity(counted, difference)), Real(0)};
  const Real z = or_infinity(counted, formula.logit(difference, Real(0), margin)), magnitude = absolute(z);
  const Rounded<Real> e = exp_negative(magnitude);
  const Real factor = z < 0 ? right : wrong;
  const Real hinge = factor == 0 ? Real(0) : magnitude * factor;  // inf * 0 must not become NaN
  const Real pull = formula.center == 0 ? Real(0) : formula.center * total;
  const Real slope = fused(wrong, sigmoid(z, e), -right * sigmoid(-z, e));
  loss.u += fused(loss.u, e.value, e.value);
  loss.add_hinge(or_zero(counted, formula.center == 0 ? hinge : fused(pull, total, hinge)));
  return {or_zero(counted, formula.beta * slope), or_zero(counted, 2 * pull)};
}

template <typename Value>
struct alignas(64) Lanes {
  Value of[kTile] = {};
};

// What the pairs of kRows items with another add up to, lane by lane.
template <typename Real>
struct TileSums {
  Lanes<Real> slope, product, hinge;
};

// What a group's pairs add up to, a lane at a time.
struct LaneSums {
  double terms[kTile] = {}, product[kTile] = {};
  int products = 0;

  template <typename Real>
  void add(const TileSums<Real>& tile) {
    if (products + kRows > PairLossSum::kMost) flush();
    products += kRows;
    for (int lane = 0; lane < kTile; lane++) {
      const double u = static_cast<double>(tile.product.of[lane]);
      product[lane] += fused(product[lane], u, u);
      terms[lane] += LossProduct<Real>{tile.product.of[lane], tile.hinge.of[lane]}.all_hinges();
    }
  }

  // A product of so many pairs' losses has a limit.
  void flush() {
    for (int lane = 0; lane < kTile; lane++) {
      terms[lane] += log1p_positive(product[lane]);
      product[lane] = 0;
    }
    products = 0;
  }

  void move_to(LaneSums& others) {
    for (int lane = 0; lane < kTile; lane++) {
      others.terms[lane] += terms[lane];
      terms[lane] = 0;
    }
  }

  double total() {
    flush();
    double sum = 0;
    for (const double lane : terms) sum += lane;
    return sum;
  }
};

}  // namespace
}  // namespace prefloss::cpu
