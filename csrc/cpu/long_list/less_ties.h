// All pairs of different rank of a long list by score: those of all items, less those of each rank. Compiled once per
// instruction set, so everything here has internal linkage.
//
// What is taken off may be far greater than what is left, and then its roundings would count. An item's sum of sigma(w)
// is no less than that of its derivative, or than the slope: where both are less than the derivative that is taken off,
// the list is for the tree.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "by_score.h"
#include "leaf.h"

namespace prefloss::cpu {
namespace {

template <typename Real>
class PairsLessTies {
 public:
  // Lists of many ranks whose scores lie far apart. A million items, 1 to 31 a rank, then take a quarter to a half of
  // the tree's time; with 250 a rank the tree is faster, and it is never slower where scores lie near each other.
  static bool takes(const RankedItems<Real>& items, const GroupOptions<Real>& options) {
    if (options.half_ties || options.ranked.margin != 0 || !items.losses.empty() || !items.directions.empty())
      return false;
    int64_t ranks = 0;
    for (int i = 0; i < items.size; i = items.level_end[static_cast<size_t>(i)]) ranks++;
    const auto [low, high] = std::minmax_element(items.rewards.begin(), items.rewards.begin() + items.size);
    const double range = static_cast<double>(*high) - static_cast<double>(*low);
    return kItemsInRank * ranks >= items.size &&
           std::abs(static_cast<double>(options.ranked.formula.beta)) * range > kGreatestProduct;
  }

  PairsLessTies(RankedItems<Real>& items, const GroupOptions<Real>& options, int threads)
      : items_(items),
        options_(options),
        threads_(threads),
        beta_(static_cast<double>(options.ranked.formula.beta)),
        grid_(items, beta_) {}

  // As AllPairs::run; or, where that would not be exact, less than 0, and nothing is added.
  double run() {
    const bool curved = !items_.curvatures.empty();
    items_.curvatures.resize(items_.slopes.size(), 0.0);
    const double all = PairsByScore<Real>(items_, options_, threads_).run();
    const double losses = take_off(all, curved);
    if (losses < 0) std::fill(items_.slopes.begin(), items_.slopes.end(), 0.0);
    if (losses < 0) std::fill(items_.curvatures.begin(), items_.curvatures.end(), 0.0);
    if (!curved) items_.curvatures.clear();
    return losses;
  }

 private:
  static constexpr int kItemsInRank = 32;                 // on average, at most
  static constexpr int kByPair = kLeafOfSmallerProducts;  // so many items of one rank are visited pair by pair, at most

  RankedItems<Real>& items_;
  const GroupOptions<Real>& options_;
  int threads_;
  double beta_;
  ItemCells<Real> grid_;

  double take_off(double all, bool curved) {
    std::vector<int> begins;  // of ranks
    for (int i = 0; i < items_.size; i = items_.level_end[static_cast<size_t>(i)]) begins.push_back(i);
    begins.push_back(items_.size);
    const int64_t count = static_cast<int64_t>(begins.size()) - 1, parts = std::min<int64_t>(count, 64);
    std::vector<double> tied(static_cast<size_t>(parts), 0.0);
    std::vector<int> failed(static_cast<size_t>(parts), 0);
    for_chunks(parts, threads_, [&](int64_t part) {
      const size_t its = static_cast<size_t>(part);
      RankedItems<Real> rank;
      Leaf pairs;
      for (int64_t n = part * count / parts; n < (part + 1) * count / parts && failed[its] == 0; n++) {
        const int begin = begins[static_cast<size_t>(n)], end = begins[static_cast<size_t>(n) + 1];
        if (end - begin == 1) continue;
        tied[its] += load(begin, end, pairs, rank);
        if (!subtract(begin, rank, curved)) failed[its] = 1;
      }
    });
    double losses = 0;
    for (const double each : tied) losses += each;
    const bool exact = std::count(failed.begin(), failed.end(), 1) == 0 && losses <= all - losses;
    return exact ? all - losses : -1;
  }

  // The items of one rank, and what their pairs add up to, as in PairsByScore.
  double load(int begin, int end, Leaf& pairs, RankedItems<Real>& rank) {
    rank.copy_of(items_, begin, end);
    rank.curvatures.assign(rank.slopes.size(), 0.0);
    rank.order.resize(static_cast<size_t>(rank.size));
    for (int i = 0; i < rank.size; i++) rank.order[static_cast<size_t>(i)] = i;
    if (rank.size > kByPair) return PairsByScore<Real>(rank, options_, 1).run();
    // Best first in the order of a list by score: of one cell, the later item is the better one.
    const auto key = [&](int i) { return grid_.key(begin + i); };
    std::sort(rank.order.begin(), rank.order.end(),
              [&](int a, int b) { return key(a) != key(b) ? key(a) > key(b) : a > b; });
    for (size_t i = 0; i < rank.order.size(); i++)
      rank.rewards[i] = items_.rewards[static_cast<size_t>(begin + rank.order[i])];
    pairs.load(rank, ItemCells<Real>(rank, beta_), {beta_, 0, true}, 0, rank.size);
    ItemSums sums;
    sums.slopes = rank.slopes.data();
    sums.curvatures = rank.curvatures.data();
    return pairs.run(sums);
  }

  // False where what is left is less than what was taken off.
  bool subtract(int begin, const RankedItems<Real>& rank, bool curved) {
    for (size_t i = 0; i < rank.order.size(); i++) {
      const size_t item = static_cast<size_t>(begin + rank.order[i]);
      const double slope = items_.slopes[item] - rank.slopes[i],
                   curvature = items_.curvatures[item] - rank.curvatures[i];
      const double left = curved ? curvature : std::max(curvature, std::abs(slope));
      if (!(rank.curvatures[i] <= left)) return false;
      items_.slopes[item] = slope;
      items_.curvatures[item] = curvature;
    }
    return true;
  }
};

}  // namespace
}  // namespace prefloss::cpu
