// The items of a group in the order of their ranks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace prefloss::cpu {
namespace {

constexpr int kTile = 16;  // items that loops work on together

}  // namespace

namespace PREFLOSS_CPU_PATH {

// A group's items from best to worst, with room for whole tiles.
template <typename Real>
struct RankedItems {
  int size = 0;
  std::vector<int> order;      // their places in the group
  std::vector<int> level_end;  // where the items of higher rank begin
  std::vector<Real> rewards;
  std::vector<double> slopes;
  std::vector<double> losses;      // the sum of each item's, where it is wanted; else empty
  std::vector<double> curvatures;  // the second derivatives of each item's sum, where they are wanted; else empty
  std::vector<double> directions;  // one an item, where the second derivatives' product with them is wanted; else empty

  void make_room(int items) {
    size = items;
    const size_t room = static_cast<size_t>((size + kTile - 1) / kTile * kTile);
    level_end.resize(static_cast<size_t>(size));
    rewards.assign(room, Real(0));
    slopes.assign(room, 0.0);
    losses.clear();
    curvatures.clear();
    directions.clear();
  }

  // The items [begin, end) of another group.
  void copy_of(const RankedItems& all, int begin, int end) {
    make_room(end - begin);
    std::copy(all.rewards.begin() + begin, all.rewards.begin() + end, rewards.begin());
    for (int i = 0; i < size; i++)
      level_end[static_cast<size_t>(i)] = std::min(all.level_end[static_cast<size_t>(begin + i)], end) - begin;
  }

  // The items of another group at some ascending places.
  void copy_of(const RankedItems& all, const std::vector<int>& places) {
    make_room(static_cast<int>(places.size()));
    for (size_t i = places.size(); i-- > 0;) {
      const int end = all.level_end[static_cast<size_t>(places[i])];
      rewards[i] = all.rewards[static_cast<size_t>(places[i])];
      const bool last = i + 1 == places.size() || places[i + 1] >= end;
      level_end[i] = last ? static_cast<int>(i) + 1 : level_end[i + 1];
    }
  }

  // Whether two items have one rank.
  bool has_ties() const {
    for (int i = 0; i < size; i++) {
      if (level_end[static_cast<size_t>(i)] > i + 1) return true;
    }
    return false;
  }

  // The first item of the rank of the item i.
  int level_begin(int i) const {
    return static_cast<int>(std::lower_bound(level_end.begin(), level_end.end(), level_end[static_cast<size_t>(i)]) -
                            level_end.begin());
  }
};

}  // namespace PREFLOSS_CPU_PATH

using namespace PREFLOSS_CPU_PATH;

}  // namespace prefloss::cpu
