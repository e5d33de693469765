// Small groups of float32 rewards, as many at a time as a loop has lanes, in float64: e = exp(w) of a pair is the
// product of a number of each item, so a pair takes no exponential. Nor does it take a division: an item's slope, the
// sum of e / (1 + e) over its pairs, is one fraction all the time, n / d, to which a pair is added as
//
//   n / d + e / (1 + e) = (n (1 + e) + d e) / (d (1 + e)).
//
// The denominator d, the product of all 1 + e, has the item's losses too: their sum is its logarithm. Each lane's items
// are put in the order of their ranks first, so that a pair's better item is always the one before. Compiled once per
// instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../cell_polynomials.h"
#include "group_visit.h"

namespace prefloss::cpu {
namespace {

// Lanes whose numbers stay in registers while a few items meet all others: those of one of the widest vectors.
#ifdef __AVX512F__
constexpr int kVector = 8;
#else
constexpr int kVector = 4;
#endif

// Groups of at most kMost items, a lane each. w = beta (the worse item's reward - the better one's) + margin.
template <int kMost>
struct ProductsInLanes {
  double terms[kTile], pairs[kTile];

  // Room for so many items in each lane.
  void clear(int most, const GroupOptions<float>& options) {
    size_ = most;
    room_ = (most + kFour - 1) / kFour * kFour;
    furthest_ = 0;
    beta_ = static_cast<double>(options.ranked.formula.beta);
    margin_ = static_cast<double>(options.ranked.margin);
    std::fill_n(rewards_[0], room_ * kTile, 0.0f);
    std::fill_n(levels_[0], room_ * kTile, std::numeric_limits<int32_t>::max());  // behind all items
    std::fill_n(sizes_, kTile, 0);
  }

  void put(int lane, const float* rewards, const int32_t* levels, int count) {
    for (int i = 0; i < count; i++) {
      rewards_[i][lane] = rewards[i];
      levels_[i][lane] = levels[i];
    }
    sizes_[lane] = count;
  }

  // False where a product could overflow: rewards of one group lie too far apart, or one of them is NaN.
  bool fit() {
    alignas(64) float low[kTile], high[kTile];
    alignas(64) int32_t nans[kTile] = {};
    std::copy_n(rewards_[0], kTile, low);
    std::copy_n(rewards_[0], kTile, high);
    for (int i = 0; i < size_; i++) {
      const float* const rewards = rewards_[i];
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        const float reward = either(i < sizes_[lane], rewards[lane], low[lane]);
        low[lane] = reward < low[lane] ? reward : low[lane];
        high[lane] = reward > high[lane] ? reward : high[lane];
        nans[lane] += reward != reward ? 1 : 0;
      }
    }
    bool all = true;
    for (int lane = 0; lane < kTile; lane++) {
      const double range = static_cast<double>(high[lane]) - static_cast<double>(low[lane]),
                   furthest = std::abs(beta_) * range + (sizes_[lane] > 0 ? std::abs(margin_) : 0.0);
      middles_[lane] = static_cast<double>(low[lane]) + range / 2;
      furthest_ = std::max(furthest_, furthest);
      all &= nans[lane] == 0 && furthest <= kGreatestProduct;
    }
    return all;
  }

  void add_pairs() {
    set_places();
    put_in_order();
    most_ = factors_below_overflow(furthest_);
    if (count_pairs())
      add_all<true>();
    else
      add_all<false>();
  }

  // Of the item i of a group.
  double slope(int i, int lane) const { return beta_ * slopes_[places_[i][lane]][lane]; }

 private:
  static constexpr int kFour = 4;  // items that meet another one at a time
  static_assert(kMost % kFour == 0 && kTile % kVector == 0);
  int size_ = 0, room_ = 0, most_ = 0;           // the last: so many 1 + e have a product that is far from overflow
  double beta_ = 1, margin_ = 0, furthest_ = 0;  // no |w| is greater than the last
  alignas(64) int32_t sizes_[kTile];             // items of each group
  alignas(64) double middles_[kTile];            // of its rewards
  // Of the items as they come; places_: where each is in the order of the ranks.
  alignas(64) float rewards_[kMost][kTile];
  alignas(64) int32_t levels_[kMost][kTile], places_[kMost][kTile];
  // In the order of the ranks. wide_levels_: the same levels, as wide as the numbers that they choose among.
  alignas(64) float ranked_rewards_[kMost][kTile];
  alignas(64) int32_t ranked_levels_[kMost][kTile];
  alignas(64) double up_[kMost][kTile], down_[kMost][kTile], wide_levels_[kMost][kTile], slopes_[kMost][kTile];
  // The fractions of pairs with better items; and those of kFour items' pairs with worse ones, of which the denominator
  // is kept less 1, so that tiny losses keep their digits.
  alignas(64) double numerators_[kMost][kTile], denominators_[kMost][kTile];
  alignas(64) double row_numerators_[kFour][kTile], row_products_[kFour][kTile];

  // How many items are before each in the order of the ranks.
  void set_places() {
    std::fill_n(places_[0], room_ * kTile, 0);
    for (int top = 0; top < room_; top += kFour) {
      alignas(64) int32_t places[kFour][kTile], levels[kFour][kTile];
      for (int row = 0; row < kFour; row++) {
        for (int lane = 0; lane < kTile; lane++) {
          places[row][lane] = 0;
          levels[row][lane] = levels_[top + row][lane];
        }
      }
      const auto meet = [&](int j, const auto& there) {
#pragma omp simd
        for (int lane = 0; lane < kTile; lane++) {
          const int32_t its = levels_[j][lane];
          int32_t before_it = 0;
          for (int row = 0; row < kFour; row++) {
            const int32_t is_before = there(row) & (its < levels[row][lane]) ? -1 : 0;  // as vectors compare
            places[row][lane] -= is_before;
            before_it += (there(row) ? 1 : 0) + is_before;
          }
          places_[j][lane] += before_it;
        }
      };
      for (int j = top + 1; j < std::min(size_, top + kFour); j++) meet(j, [=](int row) { return top + row < j; });
      for (int j = top + kFour; j < size_; j++) meet(j, [](int) { return true; });
      for (int row = 0; row < kFour; row++) {
        for (int lane = 0; lane < kTile; lane++) places_[top + row][lane] += places[row][lane];
      }
    }
  }

  // exp of the scores, and of minus them, in the order of the ranks; 0 where there is no item: such a pair adds
  // nothing.
  void put_in_order() {
    std::fill_n(ranked_rewards_[0] + size_ * kTile, (room_ - size_) * kTile, 0.0f);
    for (int i = 0; i < size_; i++) {
      for (int lane = 0; lane < kTile; lane++) {
        const int32_t place = places_[i][lane];
        ranked_rewards_[place][lane] = rewards_[i][lane];
        ranked_levels_[place][lane] = levels_[i][lane];
      }
    }
    const double of_margin = std::exp(margin_);
    for (int i = 0; i < room_; i++) {
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        const BothWays its = BothWays::of(beta_ * (static_cast<double>(ranked_rewards_[i][lane]) - middles_[lane]));
        const bool is_there = i < sizes_[lane];
        up_[i][lane] = or_zero(is_there, its.up * of_margin);
        down_[i][lane] = or_zero(is_there, its.down);
        slopes_[i][lane] = 0;
        numerators_[i][lane] = 0;
        denominators_[i][lane] = 1;
      }
    }
  }

  // Whether two items of a group have one rank.
  bool count_pairs() {
    alignas(64) int32_t tied[kTile] = {}, run[kTile] = {};  // the latter: how many before an item have its rank
    for (int i = 1; i < size_; i++) {
      const int32_t *its = ranked_levels_[i], *before = ranked_levels_[i - 1];
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        const int32_t is_tied = (i < sizes_[lane] ? 1 : 0) & (its[lane] == before[lane] ? 1 : 0);
        run[lane] = (run[lane] + 1) & -is_tied;
        tied[lane] += run[lane];
      }
    }
    double all = 0;
    for (int lane = 0; lane < kTile; lane++) {
      const double size = sizes_[lane];
      pairs[lane] = 0.5 * size * (size - 1) - tied[lane];
      all += tied[lane];
    }
    for (int i = 0; i < size_ && all > 0; i++) {
      for (int lane = 0; lane < kTile; lane++) wide_levels_[i][lane] = ranked_levels_[i][lane];
    }
    return all > 0;
  }

  template <bool kTies>
  void add_all() {
    LaneSums losses;
    int factors = 0;  // of each item's denominator
    for (int top = 0; top < size_; top += kFour, factors += kFour) {
      if (factors + kFour > most_) {
        take_columns(top);
        factors = 0;
      }
      for (int begin = top + 1; begin < size_; begin += most_) {
        const int end = std::min(size_, begin + most_);
        for (int lane = 0; lane < kTile; lane += kVector) add_rows<kTies>(top, begin, end, lane);
        take_rows(top, end - begin, losses);
      }
    }
    take_columns(0);
    losses.flush();
    std::copy_n(losses.terms, kTile, terms);
  }

  // kFour items from `top` on and those of [begin, end) that are behind them, in kVector lanes from `from` on.
  template <bool kTies>
  void add_rows(int top, int begin, int end, int from) {
    alignas(64) double numerators[kFour][kVector], products[kFour][kVector], downs[kFour][kVector];
    for (int row = 0; row < kFour; row++) {
      for (int lane = 0; lane < kVector; lane++) {
        numerators[row][lane] = products[row][lane] = 0;
        downs[row][lane] = down_[top + row][from + lane];
      }
    }
    const auto add = [&](int j, const auto& there) {
      const double *up = up_[j] + from, *levels = wide_levels_[j] + from;
      double *numerator = numerators_[j] + from, *denominator = denominators_[j] + from;
#pragma omp simd
      for (int lane = 0; lane < kVector; lane++) {
        double n = numerator[lane], d = denominator[lane];
        for (int row = 0; row < kFour; row++) {
          const bool counted = there(row) & (!kTies | (wide_levels_[top + row][from + lane] < levels[lane]));
          const double e = or_zero(counted, downs[row][lane] * up[lane]), more = fused(products[row][lane], e, e);
          numerators[row][lane] = fused(numerators[row][lane], e, numerators[row][lane] + more);
          products[row][lane] += more;
          n = fused(n + d, e, n);
          d = fused(d, e, d);
        }
        numerator[lane] = n;
        denominator[lane] = d;
      }
    };
    for (int j = begin; j < std::min(end, top + kFour); j++) add(j, [=](int row) { return top + row < j; });
    for (int j = std::max(begin, top + kFour); j < end; j++) add(j, [](int) { return true; });
    for (int row = 0; row < kFour; row++) {
      for (int lane = 0; lane < kVector; lane++) {
        row_numerators_[row][from + lane] = numerators[row][lane];
        row_products_[row][from + lane] = products[row][lane];
      }
    }
  }

  // Moves the fractions of kFour items' pairs with worse ones, at most so many of each, to slopes and losses.
  void take_rows(int top, int factors, LaneSums& losses) {
    for (int row = 0; row < kFour; row++) {
      if (losses.products + factors > most_) losses.flush();
      losses.products += factors;
      for (int lane = 0; lane < kTile; lane++) {
        const double product = row_products_[row][lane];
        slopes_[top + row][lane] -= row_numerators_[row][lane] / (1 + product);
        losses.product[lane] += fused(losses.product[lane], product, product);
      }
    }
  }

  // The same of the pairs with better ones, of the items from `first` on.
  void take_columns(int first) {
    for (int j = first; j < size_; j++) {
      for (int lane = 0; lane < kTile; lane++) {
        slopes_[j][lane] += numerators_[j][lane] / denominators_[j][lane];
        numerators_[j][lane] = 0;
        denominators_[j][lane] = 1;
      }
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
