// Items that meet one by one, in the order of their scores: as many pairs at a time as there are lanes. Compiled once
// per instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "direct_pairs.h"

namespace prefloss::cpu {
namespace {

// Those whose cells have few items, and their sums, as if the higher score were the better one's.
class LoneItems {
 public:
  std::vector<double> up, directions;  // exp of the place in the cell
  std::vector<double> slopes, curvatures, bends;

  // `factors`: exp(w) between the midsts of cells that are near each other, by their distance.
  void resize(int count, Wanted wanted, std::vector<double> factors) {
    const size_t size = static_cast<size_t>(count) + 2 * kRoom;
    keys_.assign(size, HUGE_VAL);
    std::fill_n(keys_.begin(), kRoom, -HUGE_VAL);
    up.assign(size, 1.0);
    slopes.assign(size, 0.0);
    curvatures.assign(wanted == Wanted::kSlopes ? 0 : size, 0.0);
    for (std::vector<double>* each : {&directions, &bends}) each->assign(wanted == Wanted::kBends ? size : 0, 0.0);
    wanted_ = wanted;
    factors_ = std::move(factors);
  }

  // Where the item with this number is.
  static size_t at(int n) { return static_cast<size_t>(n) + kRoom; }

  void set(size_t at, double key, double place) {
    keys_[at] = key;
    up[at] = BothWays::of(place).up;
  }

  // Each item with all lower ones that are near. Returns their losses; |w| of items of one cell is at most `width`.
  double meet(double width, int threads) {
    return sum_of_chunks(split(), threads, [&](size_t begin, size_t end) {
      DirectLosses losses(width);
      with_wanted(wanted_, [&](auto wanted) {
        for (size_t first = begin; first < end; first += kLanes)
          meet_lower<wanted>(first, std::min<size_t>(end - first, kLanes), losses);
      });
      return losses.total();
    });
  }

 private:
  static constexpr size_t kRoom = kLanes;  // before and behind all, for items that are far from any
  std::vector<double> keys_, factors_;     // the keys of the items' cells
  Wanted wanted_ = Wanted::kSlopes;

  // Cells no further apart are near each other.
  double near() const { return static_cast<double>(factors_.size()) - 1; }

  // Where chunks of items begin, and where the last ends. `meet_lower` reads and writes whole lanes: up to kLanes - 1
  // items more than those that meet, above and below. So the first 2 * kLanes items of a chunk are far from all of the
  // next: then the chunks on its two sides touch none of its items both.
  std::vector<size_t> split() const {
    constexpr size_t kItems = 4096;
    const size_t end = keys_.size() - kRoom;
    std::vector<size_t> begins{kRoom};
    for (size_t n = begins.back() + kItems; n < end; n++) {
      if (keys_[n] - keys_[begins.back() + 2 * kLanes] <= near()) continue;
      begins.push_back(n);
      n += kItems - 1;
    }
    begins.push_back(end);
    return begins;
  }

  // So many items from this one on, one a lane. Each meets the one before it, then the next lower, and so on.
  template <Wanted kWanted>
  void meet_lower(size_t first, size_t count, DirectLosses& losses) {
    constexpr bool kCurvatures = kWanted != Wanted::kSlopes, kBends = kWanted == Wanted::kBends;
    const double* const factors = factors_.data();
    const double most_apart = near(), hinge[kLanes] = {};
    alignas(64) double keys[kLanes], down[kLanes], its_directions[kLanes] = {};
    alignas(64) double its_slopes[kLanes] = {}, its_curvatures[kLanes] = {}, its_bends[kLanes] = {};
    for (size_t lane = 0; lane < kLanes; lane++) {
      keys[lane] = lane < count ? keys_[first + lane] : HUGE_VAL;
      down[lane] = 1 / up[first + lane];
      if (kBends) its_directions[lane] = directions[first + lane];
    }
    for (size_t from = first; from-- > 0;) {
      const double* __restrict other_keys = &keys_[from], * __restrict others = &up[from];
      const double* __restrict other_directions = kBends ? &directions[from] : nullptr;
      double* __restrict other_slopes = &slopes[from];
      double* __restrict other_curvatures = kCurvatures ? &curvatures[from] : nullptr;
      double* __restrict other_bends = kBends ? &bends[from] : nullptr;
      alignas(64) double product[kLanes];
      double most = 0;
#pragma omp simd reduction(max : most)
      for (int lane = 0; lane < kLanes; lane++) {
        const double distance = keys[lane] - other_keys[lane];
        const bool is_near = distance <= most_apart;
        const double e = is_near ? down[lane] * others[lane] * factors[is_near ? static_cast<int>(distance) : 0] : 0.0;
        const double inverse = 1 / (1 + e), sigma = e * inverse;
        product[lane] = e;
        most = most > e ? most : e;
        other_slopes[lane] += sigma;
        its_slopes[lane] += sigma;
        if constexpr (kCurvatures) {
          const double curvature = sigma * inverse;
          other_curvatures[lane] += curvature;
          its_curvatures[lane] += curvature;
          if constexpr (kBends) {
            other_bends[lane] += curvature * its_directions[lane];
            its_bends[lane] += curvature * other_directions[lane];
          }
        }
      }
      if (most == 0) break;  // still lower ones are no nearer
      losses.add(product, hinge);
    }
    for (size_t lane = 0; lane < kLanes; lane++) {
      slopes[first + lane] -= its_slopes[lane];
      if (kCurvatures) curvatures[first + lane] += its_curvatures[lane];
      if (kBends) bends[first + lane] += its_bends[lane];
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
