// Small groups of much one size, in lanes. Compiled once per instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../groups.h"
#include "ranked_lanes.h"

namespace prefloss::cpu {
namespace {

constexpr int64_t kMostInLane = 128;  // larger groups fill loops by themselves

// Whether the groups from `group` on, as many as there are lanes, are small and much of one size.
inline bool fill_lanes(const Groups& groups, int64_t group) {
  const int64_t end = group + kTile;
  if (end > groups.count()) return false;
  int64_t largest = 0, squares = 0;
  for (int64_t g = group; g < end; g++) {
    const int64_t size = groups.size_of(g);
    largest = std::max(largest, size);
    squares += size * size;
  }
  return largest <= kMostInLane && 2 * squares >= kTile * largest * largest;
}

// As many groups as there are lanes. An item's place in rank order is the number of those that come before it.
template <typename Real>
struct GroupsInLanes {
  int largest = 0;
  std::vector<Lanes<int64_t>> ranks, places, ends;  // `ends`: where the items of higher rank begin
  RankedLanes<Real> lanes;

  // Their sums, without statistics, and their slopes.
  void forward(const Groups& groups, int64_t first, Real* slopes, double* sums) {
    take(groups, first);
    lanes.add_plain_pairs();
    for (int lane = 0; lane < kTile; lane++) {
      const int64_t begin = groups.begin(first + lane), size = groups.size_of(first + lane);
      double pairs = 0;
      for (int64_t i = 0; i < size; i++) {
        const size_t item = static_cast<size_t>(i), place = static_cast<size_t>(places[item].of[lane]);
        pairs += static_cast<double>(std::max<int64_t>(size - ends[item].of[lane], 0));
        if (slopes) slopes[begin + i] = static_cast<Real>(lanes.slopes[place].of[lane]);
      }
      sums[lane * group_sums(false) + kPairs] = pairs;
      sums[lane * group_sums(false) + kTerms] = lanes.terms.of[lane];
    }
  }

 private:
  void take(const Groups& groups, int64_t first) {
    largest = 0;
    for (int lane = 0; lane < kTile; lane++)
      largest = std::max(largest, static_cast<int>(groups.size_of(first + lane)));
    const size_t count = static_cast<size_t>(largest);
    Lanes<int64_t> last;  // where a group has fewer items, the others come last
    std::fill(last.of, last.of + kTile, std::numeric_limits<int64_t>::max());
    ranks.assign(count, last);
    for (int lane = 0; lane < kTile; lane++) {
      const int64_t* its = groups.ranks + groups.begin(first + lane);
      for (int64_t i = 0; i < groups.size_of(first + lane); i++) ranks[static_cast<size_t>(i)].of[lane] = its[i];
    }
    find_places();
    lanes.clear(largest);
    for (int lane = 0; lane < kTile; lane++) {
      const Real* its = static_cast<const Real*>(groups.rewards) + groups.begin(first + lane);
      const int size = static_cast<int>(groups.size_of(first + lane));
      lanes.put_size(lane, size);
      for (int i = 0; i < size; i++) {
        const size_t item = static_cast<size_t>(i);
        lanes.put(lane, static_cast<int>(places[item].of[lane]), its[i], static_cast<int>(ends[item].of[lane]));
      }
    }
  }

  void find_places() {
    places.assign(ranks.size(), {});
    ends.assign(ranks.size(), {});
    for (size_t i = 0; i < ranks.size(); i++) {
      const int64_t* rank = ranks[i].of;
      int64_t* __restrict place = places[i].of;
      int64_t* __restrict end = ends[i].of;
      for (int lane = 0; lane < kTile; lane++) end[lane]++;
      for (size_t j = 0; j < i; j++) {
        const int64_t* other_rank = ranks[j].of;
        int64_t* __restrict other_place = places[j].of;
        int64_t* __restrict other_end = ends[j].of;
#pragma omp simd
        for (int lane = 0; lane < kTile; lane++) {
          const int64_t behind = rank[lane] < other_rank[lane] ? 1 : 0, ahead = other_rank[lane] < rank[lane] ? 1 : 0;
          place[lane] += 1 - behind;
          end[lane] += 1 - behind;
          other_place[lane] += behind;
          other_end[lane] += 1 - ahead;
        }
      }
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
