// Small groups in rank order, as many at a time as a loop has lanes: each lane has a group of its own, and the loops
// over pairs vectorise whatever the groups' size. Compiled once per instruction set, so everything here has internal
// linkage.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../pair_math.h"
#include "instruction_set.h"

namespace prefloss::cpu {
namespace {

// An integer as wide as Real: their comparisons fill the same vectors.
template <typename Real>
using IntegerLike = std::conditional_t<sizeof(Real) == sizeof(double), int64_t, int32_t>;

constexpr int kRows = 8;       // items that meet another before its sums go on in float64
constexpr int kSegment = 512;  // others that an item meets before its slope does

// x where it is wanted, else infinity; by its bits, or the compiler would load x under a mask, and not vectorise.
template <typename Real>
inline Real or_infinity(bool wanted, Real x) {
  using Bits = decltype(to_bits(x));
  const Bits keep = Bits(0) - static_cast<Bits>(wanted);
  return from_bits((to_bits(x) & keep) | (to_bits(std::numeric_limits<Real>::infinity()) & ~keep));
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

template <typename Real>
struct RankedLanes {
  using Integer = IntegerLike<Real>;
  int size = 0, least = 0;  // items of the largest group, and of the smallest
  bool distinct = true;     // no two items of a group have the same rank
  std::vector<Lanes<Real>> rewards;
  std::vector<Lanes<Integer>> begin;  // where the items of higher rank begin
  Lanes<Integer> end;                 // of each group
  std::vector<Lanes<double>> slopes;
  Lanes<double> terms;

  void clear(int most) {
    size = 0;
    least = most;
    distinct = true;
    rewards.assign(static_cast<size_t>(most), {});
    begin.assign(static_cast<size_t>(most), {});
    slopes.assign(static_cast<size_t>(most), {});
    end = {};
    terms = {};
  }

  // An item of a lane's group, at its place in rank order; `behind`: where the items of higher rank begin.
  void put(int lane, int place, Real reward, int behind) {
    rewards[static_cast<size_t>(place)].of[lane] = reward;
    begin[static_cast<size_t>(place)].of[lane] = behind;
    distinct &= behind == place + 1;
  }

  void put_size(int lane, int items) {
    size = std::max(size, items);
    least = std::min(least, items);
    end.of[lane] = items;
  }

  // All pairs, with the default options.
  void add_plain_pairs() {
    static_assert(kRows <= LossProduct<Real>::kMost);
    Lanes<double> product;
    int products = 0;
    for (int top = 0; top < size; top += kRows) {
      Lanes<Real> row_slopes[kRows];
      for (int j = top + 1; j < size; j++) {
        TileSums<Real> sums;
        if (distinct && j < least)
          add_rows<true>(top, j, row_slopes, sums);
        else
          add_rows<false>(top, j, row_slopes, sums);
        products += kRows;
        if (products > PairLossSum::kMost) {
          flush(product);
          products = kRows;
        }
        Lanes<double>& slope = slopes[static_cast<size_t>(j)];
        for (int lane = 0; lane < kTile; lane++) {
          const double u = static_cast<double>(sums.product.of[lane]);
          slope.of[lane] += static_cast<double>(sums.slope.of[lane]);
          product.of[lane] += fused(product.of[lane], u, u);
          terms.of[lane] += static_cast<double>(sums.hinge.of[lane]);
        }
        if (j + 1 < size && (j + 1) % kSegment != 0) continue;
        for (int row = 0; row < kRows && top + row < size; row++) {
          Lanes<double>& its = slopes[static_cast<size_t>(top + row)];
          for (int lane = 0; lane < kTile; lane++) its.of[lane] += static_cast<double>(row_slopes[row].of[lane]);
          row_slopes[row] = {};
        }
      }
    }
    flush(product);
  }

 private:
  void flush(Lanes<double>& product) {
    for (int lane = 0; lane < kTile; lane++) terms.of[lane] += log1p_positive(product.of[lane]);
    product = {};
  }

  // The items from `top` on that are ahead of the item j. A pair that does not count has z = infinity, loss and slope
  // 0.
  template <bool kAll>
  void add_rows(int top, int j, Lanes<Real>* row_slopes, TileSums<Real>& sums) {
    const Real* others = rewards[static_cast<size_t>(j)].of;
    const Integer *ends = end.of, other = j;
    for (int row = 0; row < std::min(kRows, j - top); row++) {
      const Real* rows = rewards[static_cast<size_t>(top + row)].of;
      const Integer* begins = begin[static_cast<size_t>(top + row)].of;
      Real* __restrict slopes_of_row = row_slopes[row].of;
      Real* __restrict slope = sums.slope.of;
      Real* __restrict product = sums.product.of;
      Real* __restrict hinge = sums.hinge.of;
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        const Real difference = rows[lane] - others[lane];
        LossProduct<Real> loss{product[lane], hinge[lane]};
        const Real s = loss.add_for_slope(
            kAll ? difference : or_infinity((other >= begins[lane]) & (other < ends[lane]), difference));
        product[lane] = loss.u;
        hinge[lane] = loss.hinge;
        slopes_of_row[lane] += s;
        slope[lane] -= s;
      }
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
