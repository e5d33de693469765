// Small groups, so many at a time as a loop has lanes: each lane has a group of its own, and the loops over pairs
// vectorise whatever the groups' size. Compiled once per instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../groups.h"
#include "ranked_lanes.h"

namespace prefloss::cpu {
namespace {

constexpr int kGroupLanes = kTile;
constexpr int64_t kMostInLane = 64;  // larger groups fill loops by themselves

// -x where it is wanted.
template <typename Real>
inline Real negated_if(bool wanted, Real x) {
  using Bits = decltype(to_bits(x));
  return from_bits(to_bits(x) ^ (static_cast<Bits>(wanted) << (8 * sizeof(Real) - 1)));
}

// Up to kGroupLanes groups, item by item: item i of every lane's group lies together. Where a group has no such item
// the lane is not `there`.
template <typename Real>
struct GroupsInLanes {
  int64_t first = 0, count = 0, size = 0;  // the groups, and the items of the largest
  std::vector<Lanes<Real>> rewards;
  std::vector<Lanes<int64_t>> ranks, there;
  std::vector<Lanes<double>> slopes;
  Lanes<double> pairs, hinge, product, sums[kGroupSums];

  void take(const Groups& groups, int64_t group, int64_t end) {
    first = group;
    count = end - group;
    size = 0;
    for (int64_t g = group; g < end; g++) size = std::max(size, groups.size_of(g));
    const size_t items = static_cast<size_t>(size);
    rewards.assign(items, {});
    ranks.assign(items, {});
    there.assign(items, {});
    slopes.assign(items, {});
    pairs = hinge = product = {};
    const Real* given = static_cast<const Real*>(groups.rewards);
    for (int64_t lane = 0; lane < count; lane++) {
      const int64_t begin = groups.begin(first + lane), its = groups.size_of(first + lane);
      for (int64_t i = 0; i < its; i++) {
        const size_t item = static_cast<size_t>(i);
        rewards[item].of[lane] = given[begin + i];
        ranks[item].of[lane] = groups.ranks[begin + i];
        there[item].of[lane] = 1;
      }
    }
  }

  void write_slopes(const Groups& groups, Real* result) const {
    for (int64_t lane = 0; lane < count; lane++) {
      const int64_t begin = groups.begin(first + lane), its = groups.size_of(first + lane);
      for (int64_t i = 0; i < its; i++) result[begin + i] = static_cast<Real>(slopes[static_cast<size_t>(i)].of[lane]);
    }
  }
};

// All pairs, with the default options: one exponential for loss and slope. A pair that does not count has z = infinity,
// loss and slope 0.
template <typename Real>
void add_plain_pairs(GroupsInLanes<Real>& groups) {
  int products = 0;
  for (size_t i = 0; i < groups.rewards.size(); i++) {
    const Real* a = groups.rewards[i].of;
    const int64_t* rank = groups.ranks[i].of;
    double* __restrict slope = groups.slopes[i].of;
    for (size_t j = i + 1; j < groups.rewards.size(); j++) {
      if (products++ == PairLossSum::kMost) {
        for (int lane = 0; lane < kGroupLanes; lane++) {
          groups.hinge.of[lane] += log1p_positive(groups.product.of[lane]);
          groups.product.of[lane] = 0;
        }
        products = 1;
      }
      const Real* b = groups.rewards[j].of;
      const int64_t *other_rank = groups.ranks[j].of, *there = groups.there[j].of;
      double* __restrict other_slope = groups.slopes[j].of;
      double* __restrict pairs = groups.pairs.of;
      double* __restrict product = groups.product.of;
      double* __restrict hinge = groups.hinge.of;
#pragma omp simd
      for (int lane = 0; lane < kGroupLanes; lane++) {
        const bool ahead = rank[lane]<other_rank[lane], behind = rank[lane]> other_rank[lane];
        const bool counted = (ahead | behind) & (there[lane] != 0);
        const Real z = or_infinity(counted, negated_if(behind, a[lane] - b[lane]));
        PairLossSum loss{product[lane], hinge[lane]};
        const double s = static_cast<double>(negated_if(behind, loss.add_for_slope(z)));
        product[lane] = loss.u;
        hinge[lane] = loss.hinge;
        pairs[lane] += counted ? 1.0 : 0.0;
        slope[lane] += s;
        other_slope[lane] -= s;
      }
    }
  }
}

}  // namespace
}  // namespace prefloss::cpu
