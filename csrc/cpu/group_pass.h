// The pass over the pairs of some groups: which of them share lanes, and how each of the others is done. Compiled once
// per instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "group_few.h"
#include "group_lanes.h"
#include "group_products.h"
#include "group_rows.h"
#include "instruction_set.h"
#include "long_list/few_cells.h"

namespace prefloss::cpu {
namespace {

constexpr int kMostInLane = 128;  // larger groups fill loops by themselves

// Scores beyond this, of float64 alone, would overflow when they are squared.
constexpr double kGreatest = 1e150;

// Where scores lie further apart than this, lists of less than twice as many items as `large` are done pair by pair, if
// they do not meet by score: cells with one item each cost more than they save. In float64 cells are narrower.
template <typename Real>
constexpr double kFarApart = sizeof(Real) == sizeof(double) ? 40 : 650;

// Whether a list takes linear time. Its cells need finite numbers.
template <typename Real>
bool is_long(const RankedItems<Real>& items, const GroupOptions<Real>& options) {
  const double beta = std::abs(static_cast<double>(options.ranked.formula.beta)),
               margin = std::abs(static_cast<double>(options.ranked.margin)), most = kGreatest / std::max(1.0, beta);
  if (items.size < options.large || !(beta < kGreatest && std::isfinite(margin))) return false;
  double low = HUGE_VAL, high = -HUGE_VAL;  // of the finite ones
  for (size_t i = 0; i < static_cast<size_t>(items.size); i++) {
    const double reward = static_cast<double>(items.rewards[i]), finite = reward - reward == 0 ? reward : 0.0;
    low = std::min(low, finite);
    high = std::max(high, finite);
  }
  if (std::max(-low, high) > most) return false;
  return items.size >= 2 * options.large || beta * (high - low) + margin <= kFarApart<Real> ||
         are_met_by_score(items, options);
}

// What the pass over the pairs finds, unscaled. `table`: the sums of each group. `slopes`, and `curvatures` where they
// are wanted: the first and the second derivatives of its kTerms by each reward. `lists`: where `set_list` writes,
// where rows have one group each; else nullptr.
struct GroupResults {
  double *table = nullptr, *slopes = nullptr, *curvatures = nullptr, *lists = nullptr;
};

// The pass over the pairs of some of the groups.
template <typename Real>
class GroupsForward {
  using Integer = IntegerLike<Real>;

 public:
  // `cells`: where groups may take them, else nullptr.
  GroupsForward(const Groups& groups, const GroupOptions<Real>& options, bool statistics, const GroupResults& results,
                const CellsOfCall* cells)
      : groups_(groups),
        options_(options),
        statistics_(statistics),
        stride_(group_sums(statistics)),
        results_(results),
        cells_(cells) {}

  // The groups [begin, end) for which wanted(group) holds. False where a rank is NaN.
  template <typename Wanted>
  bool run(int64_t begin, int64_t end, int threads, const Wanted& wanted) {
    for (int64_t group = begin; group < end;) {
      if (!wanted(group)) {
        group++;
        continue;
      }
      const int64_t many = small_groups(group, end);
      if (!items_.load(groups_, group, group + many)) return false;
      if (!in_lanes(group, many)) {
        for (int64_t g = group; g < group + many; g++) alone(g, groups_.begin(g) - groups_.begin(group), threads);
      }
      group += many;
    }
    return true;
  }

 private:
  const Groups& groups_;
  const GroupOptions<Real>& options_;
  bool statistics_;
  int stride_;
  GroupResults results_;
  const CellsOfCall* cells_;
  FewCells few_cells_;
  LoadedItems<Real> items_;
  RankedItems<Real> ranked_;
  GroupsInLanes<Real, kMostInLane> lanes_;
  ProductsInLanes<kMostInLane> products_;

  // How many groups from here on, of one row, may share the lanes: at least this one. The same for any number of
  // threads.
  int64_t small_groups(int64_t group, int64_t end) const {
    end = std::min({end, (group / kTile + 1) * kTile, (groups_.row_of(group) + 1) * groups_.groups});
    int64_t next = group;
    while (next < end && groups_.size_of(next) <= kMostInLane) next++;
    return std::max(next, group + 1) - group;
  }

  // Whether these groups together take fewer steps than one after another; then they are done.
  bool in_lanes(int64_t first, int64_t many) {
    if (statistics_ || results_.curvatures || many == 1) return false;
    int64_t largest = 0, squares = 0;
    for (int64_t g = first; g < first + many; g++) {
      largest = std::max(largest, groups_.size_of(g));
      squares += groups_.size_of(g) * groups_.size_of(g);
    }
    const int64_t steps = largest * (largest - 1) / 2;
    if (largest > kTile) {
      int64_t alone = 0;
      for (int64_t g = first; g < first + many && alone < steps; g++)
        alone += steps_alone(g, groups_.begin(g) - groups_.begin(first));
      if (alone < steps) return false;
    } else if (squares < 2 * steps) {  // one that is alone takes a step an item, and one tile is hardly filled
      return false;
    }
    if constexpr (std::is_same_v<Real, float>) {
      if (options_.is_softplus()) {
        products_.clear(static_cast<int>(largest), options_);
        put_in(products_, first, many);
        if (products_.fit()) {
          products_.add_pairs();
          take_from(products_, first, many);
          return true;
        }
      }
    }
    lanes_.clear(static_cast<int>(largest));
    put_in(lanes_, first, many);
    lanes_.add_pairs(options_);
    take_from(lanes_, first, many);
    return true;
  }

  template <typename GroupsInIts>
  void put_in(GroupsInIts& lanes, int64_t first, int64_t many) {
    for (int64_t lane = 0; lane < many; lane++) {
      const int64_t from = groups_.begin(first + lane) - groups_.begin(first);
      lanes.put(static_cast<int>(lane), items_.rewards + from, items_.levels + from,
                static_cast<int>(groups_.size_of(first + lane)));
    }
  }

  template <typename GroupsInIts>
  void take_from(const GroupsInIts& lanes, int64_t first, int64_t many) {
    for (int64_t lane = 0; lane < many; lane++) {
      double* const sums = results_.table + (first + lane) * stride_;
      sums[kPairs] = lanes.pairs[lane];
      sums[kTerms] = lanes.terms[lane];
      double* const slopes = results_.slopes + groups_.begin(first + lane);
      for (int64_t i = 0; i < groups_.size_of(first + lane); i++)
        slopes[i] = lanes.slope(static_cast<int>(i), static_cast<int>(lane));
    }
  }

  // Of kTile pairs each.
  int64_t steps_alone(int64_t group, int64_t from) const {
    const int64_t size = groups_.size_of(group);
    const Ranks<Integer> ranks(items_.levels + from, static_cast<int>(size));
    if (ranks.are_one() && !options_.half_ties) return 0;
    const int64_t rows = are_few(ranks, size) && !options_.half_ties ? ranks.fewer() : size / 2 + 8;
    return rows * (size / kTile + 1);
  }

  void alone(int64_t group, int64_t from, int threads) {
    const int size = static_cast<int>(groups_.size_of(group));
    const Real* const rewards = items_.rewards + from;
    const Integer* const levels = items_.levels + from;
    double *const sums = results_.table + group * stride_, *const slopes = results_.slopes + groups_.begin(group);
    const Ranks<Integer> ranks(levels, size);
    if (ranks.are_one() && !options_.half_ties) {
      std::fill_n(sums, stride_, 0.0);
      return;
    }
    if (!statistics_ && !results_.curvatures && !options_.half_ties && are_few(ranks, size)) {
      sums[kPairs] = static_cast<double>(ranks.at_least) * static_cast<double>(ranks.at_most);
      sums[kTerms] = FewItems<Real>(options_, rewards, levels, size, ranks).forward(slopes, threads);
      return;
    }
    double* const curvatures = results_.curvatures ? results_.curvatures + groups_.begin(group) : nullptr;
    if constexpr (std::is_same_v<Real, float>) {
      if (cells_ && few_cells_.load(*cells_, rewards, levels, size, ranks, curvatures != nullptr)) {
        sums[kTerms] = few_cells_.run(slopes, curvatures, sums[kPairs], threads);
        return;
      }
    }
    double all_sums[kGroupSums];
    put_in_order(rewards, levels, size, ranks, threads, ranked_);
    const bool by_item = results_.lists && ranks.are_two(size) && !options_.half_ties;
    if (by_item) ranked_.losses.assign(static_cast<size_t>(size), 0.0);
    const bool second = curvatures != nullptr;
    if (second) ranked_.curvatures.assign(static_cast<size_t>(size), 0.0);
    if (is_long(ranked_, options_) && (!second || are_finite(rewards, size)))
      forward_long_list(ranked_, groups_, statistics_, all_sums, threads);
    else
      visit_pairs(all_sums);
    std::copy_n(all_sums, stride_, sums);
    if (by_item) set_list_of(results_.lists + kListSums * group);
    for_items(size, threads, [&](size_t i) { slopes[ranked_.order[i]] = ranked_.slopes[i]; });
    if (!curvatures) return;
    for_items(size, threads, [&](size_t i) { curvatures[ranked_.order[i]] = ranked_.curvatures[i]; });
  }

  // Each pair of the ranked items; second derivatives come without the sum of the terms.
  void visit_pairs(double* sums) {
    double terms = 0;
    bool done = false;
    if constexpr (std::is_same_v<Real, float>) done = forward_leaf(ranked_, groups_, terms);
    if (!done && results_.curvatures)
      add_derivatives(ranked_, options_);
    else if (!done)
      terms = add_slopes(ranked_, options_);
    add_sums(ranked_, options_, statistics_, sums);
    sums[kTerms] = terms;
  }

  // Of the items' losses, each of the better ones with each of the worse.
  void set_list_of(double* list) const {
    const int better = ranked_.level_end[0], worse = ranked_.size - better;
    const auto squares = [&](int begin, int end, int others) {
      return moments(begin, end, [&](int i) { return ranked_.losses[static_cast<size_t>(i)] / others; }).squares;
    };
    set_list(better, squares(0, better, worse), worse, squares(better, ranked_.size, better), list);
  }
};

}  // namespace
}  // namespace prefloss::cpu
