// Small groups of float32 rewards, as many at a time as a loop has lanes, in float64: exp(w) of a pair is the product
// of a number of each item, so a pair takes no exponential, and four pairs share a division. Each lane's items are put
// in the order of their ranks first, so that a pair's better item is always the one before. Compiled once per
// instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "group_visit.h"
#include "long_list/direct_pairs.h"

namespace prefloss::cpu {
namespace {

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
    std::fill_n(scores_[0], room_ * kTile, 0.0);
    std::fill_n(levels_[0], room_ * kTile, std::numeric_limits<int32_t>::max());  // behind all items
    std::fill_n(counts_, kTile, 0.0);
    std::fill_n(sizes_, kTile, 0);
  }

  // False where a product could overflow: the rewards lie too far apart, or one of them is NaN.
  bool put(int lane, const float* rewards, const int32_t* levels, int count) {
    double low = HUGE_VAL, high = -HUGE_VAL;
    bool is_nan = false;
    for (int i = 0; i < count; i++) {
      const double reward = static_cast<double>(rewards[i]);
      low = std::min(low, reward);
      high = std::max(high, reward);
      is_nan |= reward != reward;
      levels_[i][lane] = levels[i];
    }
    counts_[lane] = sizes_[lane] = count;
    if (count == 0) return true;
    const double middle = low + (high - low) / 2, furthest = std::abs(beta_) * (high - low) + std::abs(margin_);
    for (int i = 0; i < count; i++) scores_[i][lane] = beta_ * (static_cast<double>(rewards[i]) - middle);
    furthest_ = std::max(furthest_, furthest);
    return !is_nan && furthest <= kGreatestProduct;
  }

  void add_pairs() {
    set_places();
    put_in_order();
    const bool any_ties = count_pairs();
    LaneSums losses;
    most_ = most_products(furthest_);
    for (int top = 0; top < size_; top += kFour) {
      for (auto& lanes : rows_) std::fill_n(lanes, kTile, 0.0);
      any_ties ? add_behind<true>(top, losses) : add_behind<false>(top, losses);
      for (int row = 0; row < kFour; row++) {
        for (int lane = 0; lane < kTile; lane++) slopes_[top + row][lane] -= rows_[row][lane];
      }
    }
    losses.flush();
    std::copy_n(losses.terms, kTile, terms);
  }

  // Of the item i of a group.
  double slope(int i, int lane) const { return beta_ * slopes_[places_[i][lane]][lane]; }

 private:
  static constexpr int kFour = kDirectRows;  // items that meet another one at a time
  static_assert(kMost % kFour == 0);
  int size_ = 0, room_ = 0, most_ = 0;           // the last: so many products until the logarithm is taken
  double beta_ = 1, margin_ = 0, furthest_ = 0;  // no |w| is greater than the last
  alignas(64) double counts_[kTile];             // items of each group
  alignas(64) int32_t sizes_[kTile];             // the same numbers
  // Of the items as they come; places_: where each is in the order of the ranks.
  alignas(64) int32_t levels_[kMost][kTile], places_[kMost][kTile];
  alignas(64) double scores_[kMost][kTile];
  // In the order of the ranks; order_ and ordered_: the levels.
  alignas(64) int32_t order_[kMost][kTile];
  alignas(64) double up_[kMost][kTile], down_[kMost][kTile], slopes_[kMost][kTile], ordered_[kMost][kTile];
  alignas(64) double rows_[kFour][kTile];

  // How many items are before each in the order of the ranks.
  void set_places() {
    std::fill_n(places_[0], size_ * kTile, 0);
    for (int i = 0; i < size_; i++) {
      alignas(64) int32_t before[kTile], its_level[kTile];
      std::copy_n(places_[i], kTile, before);
      std::copy_n(levels_[i], kTile, its_level);
      for (int j = i + 1; j < size_; j++) {
        const int32_t* const levels = levels_[j];
        int32_t* const places = places_[j];
#pragma omp simd
        for (int lane = 0; lane < kTile; lane++) {
          const int32_t is_before = levels[lane] < its_level[lane] ? 1 : 0;
          before[lane] += is_before;
          places[lane] += 1 - is_before;
        }
      }
      std::copy_n(before, kTile, places_[i]);
    }
  }

  // exp of the scores, and of minus them, in the order of the ranks; 0 where there is no item: such a pair adds
  // nothing.
  void put_in_order() {
    for (int i = 0; i < size_; i++) {
      for (int lane = 0; lane < kTile; lane++) {
        const int32_t place = places_[i][lane];
        up_[place][lane] = scores_[i][lane];
        order_[place][lane] = levels_[i][lane];
      }
    }
    const double of_margin = std::exp(margin_);
    for (int i = 0; i < room_; i++) {
      const double number = i;
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        const double score = up_[i][lane];
        const BothWays its = BothWays::of(score);
        const bool is_there = number < counts_[lane];
        up_[i][lane] = or_zero(is_there, its.up * of_margin);
        down_[i][lane] = or_zero(is_there, its.down);
        slopes_[i][lane] = 0;
      }
    }
  }

  // Whether two items of a group have one rank.
  bool count_pairs() {
    alignas(64) int32_t tied[kTile] = {}, run[kTile] = {};  // the latter: how many before an item have its rank
    for (int i = 1; i < size_; i++) {
      const int32_t *its = order_[i], *before = order_[i - 1];
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        run[lane] = (i < sizes_[lane]) & (its[lane] == before[lane]) ? run[lane] + 1 : 0;
        tied[lane] += run[lane];
      }
    }
    double all = 0;
    for (int lane = 0; lane < kTile; lane++) {
      pairs[lane] = 0.5 * counts_[lane] * (counts_[lane] - 1) - tied[lane];
      all += tied[lane];
    }
    for (int i = 0; i < size_ && all > 0; i++) {
      for (int lane = 0; lane < kTile; lane++) ordered_[i][lane] = order_[i][lane];
    }
    return all > 0;
  }

  // kFour items from `top` on with those behind them.
  template <bool kTies>
  void add_behind(int top, LaneSums& losses) {
    for (int j = top + 1; j < std::min(size_, top + kFour); j++)
      add_rows<kTies>(top, j, losses, [=](int row) { return top + row < j; });
    for (int j = top + kFour; j < size_; j++) add_rows<kTies>(top, j, losses, [](int) { return true; });
  }

  // The items from `top` on for which there(row) holds, and the item j, which is behind them.
  template <bool kTies, typename There>
  PREFLOSS_HOST_DEVICE void add_rows(int top, int j, LaneSums& losses, const There& there) {
    if (losses.products == most_) losses.flush();
    losses.products++;
    const double *up = up_[j], *levels = ordered_[j];
    const double (*row_down)[kTile] = down_ + top, (*row_levels)[kTile] = ordered_ + top;
    double *its = slopes_[j], *product = losses.product;
#pragma omp simd
    for (int lane = 0; lane < kTile; lane++) {
      const auto pair = [&](int row) {
        const double e = row_down[row][lane] * up[lane];
        return or_zero(there(row) & (!kTies | (row_levels[row][lane] < levels[lane])), e);
      };
      const double a = pair(0), b = pair(1), c = pair(2), d = pair(3);
      const double one_a = 1 + a, one_b = 1 + b, one_c = 1 + c, one_d = 1 + d;
      const double first = one_a * one_b, second = one_c * one_d, inverse = 1 / (first * second);
      const double of_first = inverse * second, of_second = inverse * first;
      const double slope_a = a * (of_first * one_b), slope_b = b * (of_first * one_a),
                   slope_c = c * (of_second * one_d), slope_d = d * (of_second * one_c);
      rows_[0][lane] += slope_a;
      rows_[1][lane] += slope_b;
      rows_[2][lane] += slope_c;
      rows_[3][lane] += slope_d;
      its[lane] += (slope_a + slope_b) + (slope_c + slope_d);
      const double u = fused(a, b, a + b), v = fused(c, d, c + d), all = fused(u, v, u + v);
      product[lane] += fused(product[lane], all, all);
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
