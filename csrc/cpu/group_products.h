// Small groups of float32 rewards, as many at a time as a loop has lanes, in float64: exp(w) of a pair is the product
// of a number of each item, so a pair takes no exponential, and four pairs share a division. Compiled once per
// instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>

#include "group_visit.h"
#include "long_list/direct_pairs.h"

namespace prefloss::cpu {
namespace {

// Groups of at most kMost items, a lane each. w = beta (the worse item's reward - the better one's) + margin.
template <int kMost>
struct ProductsInLanes {
  alignas(64) double slopes[kMost][kTile];
  double terms[kTile], pairs[kTile];

  // Room for so many items in each lane.
  void clear(int most, const GroupOptions<float>& options) {
    const int entries = (most + kFour - 1) / kFour * kFour * kTile;
    size_ = most;
    furthest_ = 0;
    beta_ = static_cast<double>(options.ranked.formula.beta);
    margin_ = static_cast<double>(options.ranked.margin);
    std::fill_n(&up_[0][0], entries, 0.0);
    std::fill_n(&levels_[0][0], entries, std::nan(""));  // no item's: neither above nor below any
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
    if (count == 0) return true;
    const double middle = low + (high - low) / 2, furthest = std::abs(beta_) * (high - low) + std::abs(margin_);
    for (int i = 0; i < count; i++) up_[i][lane] = beta_ * (static_cast<double>(rewards[i]) - middle);
    furthest_ = std::max(furthest_, furthest);
    return !is_nan && furthest <= kGreatestProduct;
  }

  void add_pairs() {
    const double of_margin = std::exp(margin_);
    for (int i = 0; i < (size_ + kFour - 1) / kFour * kFour; i++) {
#pragma omp simd
      for (int lane = 0; lane < kTile; lane++) {
        const BothWays its = BothWays::of(up_[i][lane]);
        up_[i][lane] = its.up * of_margin;
        down_[i][lane] = its.down;
      }
      std::fill_n(slopes[i], kTile, 0.0);
    }
    LaneSums losses;
    most_ = most_products(furthest_);
    std::fill_n(pairs, kTile, 0.0);
    for (int top = 0; top < size_; top += kFour) {
      for (auto& lanes : rows_) std::fill_n(lanes, kTile, 0.0);
      for (int j = top + 1; j < std::min(size_, top + kFour); j++)
        add_rows(top, j, losses, [=](int row) { return top + row < j; });
      for (int j = top + kFour; j < size_; j++) add_rows(top, j, losses, [](int) { return true; });
      for (int row = 0; row < kFour; row++) {
        for (int lane = 0; lane < kTile; lane++) slopes[top + row][lane] -= rows_[row][lane];
      }
    }
    losses.flush();
    std::copy_n(losses.terms, kTile, terms);
    for (int i = 0; i < size_ && beta_ != 1; i++) {
      for (int lane = 0; lane < kTile; lane++) slopes[i][lane] *= beta_;
    }
  }

 private:
  static constexpr int kFour = kDirectRows;  // items that meet another one at a time
  static_assert(kMost % kFour == 0);
  int size_ = 0, most_ = 0;                      // so many products until the logarithm is taken
  double beta_ = 1, margin_ = 0, furthest_ = 0;  // no |w| is greater than the last
  alignas(64) double up_[kMost][kTile], down_[kMost][kTile], levels_[kMost][kTile], rows_[kFour][kTile];

  // One pair: exp(w), or 0 where there is none; and whether the item that four others meet is the better one.
  struct Pair {
    double e;
    bool behind;
  };

  // The items from `top` on for which there(row) holds, and the item j.
  template <typename There>
  PREFLOSS_HOST_DEVICE void add_rows(int top, int j, LaneSums& losses, const There& there) {
    if (losses.products == most_) losses.flush();
    losses.products++;
    const double *up = up_[j], *down = down_[j], *levels = levels_[j];
    const double (*row_up)[kTile] = up_ + top, (*row_down)[kTile] = down_ + top, (*row_levels)[kTile] = levels_ + top;
    double *its = slopes[j], *product = losses.product;
#pragma omp simd
    for (int lane = 0; lane < kTile; lane++) {
      const auto pair = [&](int row) {
        // Which two numbers are multiplied is chosen by bits, or the compiler loads them under masks.
        const double better = row_down[row][lane], worse = row_up[row][lane];
        const bool ahead = row_levels[row][lane] < levels[lane], behind = levels[lane] < row_levels[row][lane];
        const double e = either(behind, down[lane], better) * either(behind, worse, up[lane]);
        return Pair{or_zero((ahead | behind) & there(row), e), behind};
      };
      const Pair a = pair(0), b = pair(1), c = pair(2), d = pair(3);
      const double one_a = 1 + a.e, one_b = 1 + b.e, one_c = 1 + c.e, one_d = 1 + d.e;
      const double first = one_a * one_b, second = one_c * one_d, inverse = 1 / (first * second);
      const double of_first = inverse * second, of_second = inverse * first;
      const double slope_a = negated(a.behind, a.e * (of_first * one_b)),
                   slope_b = negated(b.behind, b.e * (of_first * one_a)),
                   slope_c = negated(c.behind, c.e * (of_second * one_d)),
                   slope_d = negated(d.behind, d.e * (of_second * one_c));
      rows_[0][lane] += slope_a;
      rows_[1][lane] += slope_b;
      rows_[2][lane] += slope_c;
      rows_[3][lane] += slope_d;
      its[lane] += (slope_a + slope_b) + (slope_c + slope_d);
      const double u = fused(a.e, b.e, a.e + b.e), v = fused(c.e, d.e, c.e + d.e), all = fused(u, v, u + v);
      product[lane] += fused(product[lane], all, all);
      pairs[lane] += (a.e > 0 ? 1.0 : 0.0) + (b.e > 0 ? 1.0 : 0.0) + (c.e > 0 ? 1.0 : 0.0) + (d.e > 0 ? 1.0 : 0.0);
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
