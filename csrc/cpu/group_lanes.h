// Small groups, as many at a time as a loop has lanes: each lane has a group of its own, and the loops over pairs
// vectorise whatever the groups' size. Two items are compared where they meet, so they need no order. Compiled once per
// instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>

#include "group_visit.h"

namespace prefloss::cpu {
namespace {

// Groups of at most kMost items.
template <typename Real, int kMost>
struct GroupsInLanes {
  using Integer = IntegerLike<Real>;
  int size = 0, least = 0;  // items of the largest group, and of the smallest
  alignas(64) Real rewards[kMost][kTile];
  alignas(64) Integer levels[kMost][kTile];
  alignas(64) double slopes[kMost][kTile];
  Lanes<Integer> sizes;
  double terms[kTile], pairs[kTile];

  // Of the item i of a group.
  double slope(int i, int lane) const { return slopes[i][lane]; }

  // Room for so many items in each lane. What no group fills is computed, and counts nothing.
  void clear(int most) {
    size = least = most;
    std::fill_n(&rewards[0][0], most * kTile, Real(0));
    std::fill_n(&levels[0][0], most * kTile, Integer(0));
    std::fill_n(&slopes[0][0], most * kTile, 0.0);
    sizes = {};
  }

  void put(int lane, const Real* its_rewards, const Integer* its_levels, int count) {
    for (int i = 0; i < count; i++) {
      rewards[i][lane] = its_rewards[i];
      levels[i][lane] = its_levels[i];
    }
    sizes.of[lane] = static_cast<Integer>(count);
    least = std::min(least, count);
  }

  void add_pairs(const GroupOptions<Real>& options) {
    if (options.plain && !options.half_ties)
      add<true>(options);
    else
      add<false>(options);
  }

 private:
  template <bool kPlain>
  void add(const GroupOptions<Real>& options) {
    static_assert(kRows <= LossProduct<Real>::kMost);
    LaneSums sums;
    Lanes<Integer> counted;
    for (int top = 0; top < size; top += kRows) {
      Lanes<Real> row_slopes[kRows];
      for (int j = top + 1; j < size; j++) {
        TileSums<Real> tile;
        if (j < least)
          add_rows<kPlain, true>(options, top, j, row_slopes, tile, counted);
        else
          add_rows<kPlain, false>(options, top, j, row_slopes, tile, counted);
        for (int lane = 0; lane < kTile; lane++) slopes[j][lane] += static_cast<double>(tile.slope.of[lane]);
        sums.add(tile);
        if (j + 1 < size && (j + 1) % kTile != 0) continue;
        for (int row = 0; row < std::min(kRows, size - top); row++) {
          for (int lane = 0; lane < kTile; lane++)
            slopes[top + row][lane] += static_cast<double>(row_slopes[row].of[lane]);
          row_slopes[row] = {};
        }
      }
    }
    sums.flush();
    for (int lane = 0; lane < kTile; lane++) {
      terms[lane] = sums.terms[lane];
      pairs[lane] = static_cast<double>(counted.of[lane]);
    }
  }

  // The items from `top` on that are before the item j.
  template <bool kPlain, bool kAllAreThere>
  void add_rows(const GroupOptions<Real>& options, int top, int j, Lanes<Real>* row_slopes, TileSums<Real>& sums,
                Lanes<Integer>& counted) {
    const Formula<Real> formula = options.ranked.formula;
    const Real margin = options.ranked.margin, right = options.ranked.right, wrong = options.ranked.wrong;
    const bool half_ties = options.half_ties;
    const Real* others = rewards[j];
    const Integer *other_levels = levels[j], *counts = sizes.of, other = j;
    Integer* __restrict pairs_of = counted.of;
    for (int row = 0; row < std::min(kRows, j - top); row++) {
      const Real* rows = rewards[top + row];
      const Integer* row_levels = levels[top + row];
      Real* __restrict slopes_of_row = row_slopes[row].of;
      Real* __restrict slope = sums.slope.of;
      Real* __restrict product = sums.product.of;
      Real* __restrict hinge = sums.hinge.of;
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        const Integer level = row_levels[lane], other_level = other_levels[lane];
        const bool behind = other_level < level;
        const bool ranked = level != other_level, there = kAllAreThere ? true : other < counts[lane];
        const bool pair = kPlain ? ranked & there : (ranked | half_ties) & there;
        const Real a = rows[lane], b = others[lane], difference = negated(behind, a - b);
        LossProduct<Real> loss{product[lane], hinge[lane]};
        const PairSlopes<Real> its =
            kPlain ? visit<true>(formula, difference, a + b, pair, margin, right, wrong, loss)
                   : visit<false>(formula, difference, a + b, pair, or_zero(ranked, margin),
                                  either(ranked, right, Real(0.5)), either(ranked, wrong, Real(0.5)), loss);
        const Real by_row = negated(behind, its.difference);
        product[lane] = loss.u;
        hinge[lane] = loss.hinge;
        slopes_of_row[lane] += kPlain ? by_row : its.sum + by_row;
        slope[lane] += kPlain ? -by_row : its.sum - by_row;
        pairs_of[lane] += static_cast<Integer>(pair);
      }
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
