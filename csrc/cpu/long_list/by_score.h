// All pairs of a long list in linear time, where every pair counts and no margin sets apart its better item. Compiled
// once per instruction set, so everything here has internal linkage.
//
// Then ranks count little: softplus(w) = softplus(-w) + w, so which item of a pair is the better one changes its loss
// by what is linear in the scores. So each pair is taken as if the higher score were the better one's, where w <= 0:
// one walk over the cells in the order of their scores. What is linear comes to a whole number an item, which is exact:
// how many better items lie lower, less how many worse ones lie higher, is its place in the order of ranks plus its
// place in that of scores less the number of others.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../group_visit.h"
#include "lone_items.h"
#include "relation.h"
#include "score_list.h"

namespace prefloss::cpu {
namespace {

// A sum of products of two numbers, as two parts: terms may be far greater than what is left of them.
class SumOfProducts {
 public:
  void add(double a, double b) {
    const double product = a * b;
    add_parts(product, std::fma(a, b, -product));
  }

  void add(const SumOfProducts& other) { add_parts(other.high_, other.low_); }

  double value() const { return high_ + low_; }

 private:
  double high_ = 0, low_ = 0;

  void add_parts(double high, double low) {
    const double sum = high_ + high, part = sum - high_;
    low_ += ((high_ - (sum - part)) + (high - part)) + low;
    high_ = sum;
  }
};

template <typename Real>
class PairsByScore {
 public:
  PairsByScore(RankedItems<Real>& items, const GroupOptions<Real>& options, int threads)
      : items_(items),
        beta_(static_cast<double>(options.ranked.formula.beta)),
        threads_(threads),
        grid_(items, beta_),
        list_(grid_, items.size, threads),
        series_(interpolation_, grid_.half()),
        curved_(!items.curvatures.empty()),
        directed_(!items.directions.empty()) {
    relation_.prepare(interpolation_, -list_.range(), 0, grid_.width, threads);
    near_ = -relation_.nearest;
    list_.number_moments(near_);
    if (!options.half_ties && items.has_ties()) count_worse();
  }

  // As AllPairs::run. Ties that are to be skipped count too: the later item in the list by score is the better one.
  double run() {
    start();
    double losses = sum_of_chunks(
        split(), threads_, [&](size_t begin, size_t end) { return meet_near(begin, end) + meet_far(begin, end); });
    losses += lone_.meet(grid_.width, threads_);
    return losses + finish();
  }

 private:
  static constexpr int kCount = kPolynomials<Real>;

  RankedItems<Real>& items_;
  double beta_;
  int threads_;
  ItemCells<Real> grid_;
  ScoreList<Real> list_;
  const Interpolation<kCount> interpolation_{};
  const Series<Real> series_;
  bool curved_, directed_;   // whether curvatures, and products with directions, are wanted
  Relation<Real> relation_;  // of a higher item with a lower one
  double near_ = 0;          // cells no further apart are near each other
  std::vector<int> worse_;   // how many worse items each has, where that is not by its place in the order of ranks
  LoneItems lone_;
  std::vector<double> moments_, potentials_, weighted_, bends_;  // as TreeNode has them

  static double* of(std::vector<double>& all, const ScoreCell& cell) {
    return &all[static_cast<size_t>(cell.moments) * kCount];
  }
  const double* of(const std::vector<double>& all, const ScoreCell& cell) const {
    return &all[static_cast<size_t>(cell.moments) * kCount];
  }
  static size_t lone_at(const ScoreCell& cell, int n) { return LoneItems::at(cell.lone + n - cell.begin); }
  double direction(int n) const { return items_.directions[static_cast<size_t>(list_.order[static_cast<size_t>(n)])]; }

  // Of one rank, the later item in the list by score counts as the better one.
  void count_worse() {
    std::vector<int> lower(list_.order.size(), 0);  // of each rank, at its last item
    for (const int item : list_.order) {
      const int end = items_.level_end[static_cast<size_t>(item)];
      worse_.push_back(items_.size - end + lower[static_cast<size_t>(end - 1)]++);
    }
  }

  // The cells' moments, and the items that meet one by one.
  void start() {
    std::vector<double> factors;
    for (double distance = 0; distance <= near_; distance++) factors.push_back(relation_.factor(-distance));
    lone_.resize(list_.lone, directed_ ? Wanted::kBends : curved_ ? Wanted::kCurvatures : Wanted::kSlopes, factors);
    const size_t parts = static_cast<size_t>(list_.parts()), size = static_cast<size_t>(list_.with_moments) * kCount;
    for (std::vector<double>* each : {&moments_, &potentials_}) each->assign(size, 0.0);
    for (std::vector<double>* each : {&weighted_, &bends_}) each->assign(directed_ ? size : 0, 0.0);
    std::vector<std::vector<double>> moments(parts), weighted(parts);
    for_chunks(list_.parts(), threads_, [&](int64_t part) {
      std::vector<double>&its = moments[static_cast<size_t>(part)], &their = weighted[static_cast<size_t>(part)];
      list_.for_cells_in(static_cast<int>(part), [&](const ScoreCell& cell, int begin, int end) {
        if (!cell.is_dense()) load_lone(cell, begin, end);
        if (cell.moments < 0) return;
        add_moments(begin, end, its, [](int) { return 1.0; });
        if (directed_) add_moments(begin, end, their, [&](int n) { return direction(n); });
      });
    });
    for (size_t part = 0; part < parts; part++) {
      size_t from = 0;
      list_.for_cells_in(static_cast<int>(part), [&](const ScoreCell& cell, int, int) {
        if (cell.moments < 0) return;
        for (size_t k = 0; k < kCount; k++) of(moments_, cell)[k] += moments[part][from + k];
        for (size_t k = 0; k < kCount && directed_; k++) of(weighted_, cell)[k] += weighted[part][from + k];
        from += kCount;
      });
    }
  }

  void load_lone(const ScoreCell& cell, int begin, int end) {
    for (int n = begin; n < end; n++) {
      const size_t at = lone_at(cell, n);
      lone_.set(at, cell.key, list_.places[static_cast<size_t>(n)]);
      if (directed_) lone_.directions[at] = direction(n);
    }
  }

  // Appends the sums of T_k times the items' weights.
  template <typename Weight>
  void add_moments(int begin, int end, std::vector<double>& moments, const Weight& weight) const {
    double sums[kCount][kLanes] = {};
    for (int first = begin; first < end; first += kLanes) {
      double t[kLanes], weights[kLanes] = {};
      load_places(first, end, t);
      for (int n = first; n < std::min(first + kLanes, end); n++) weights[n - first] = weight(n);
      add_polynomials(t, weights, sums);
    }
    moments.resize(moments.size() + kCount);
    sum_lanes(sums, moments.data() + moments.size() - kCount);
  }

  // Of the items [first, end), at most kLanes, the places in the cell from -1 to 1; then 0.
  void load_places(int first, int end, double (&t)[kLanes]) const {
    for (int lane = 0; lane < kLanes; lane++)
      t[lane] = first + lane < end ? list_.places[static_cast<size_t>(first + lane)] / grid_.half() : 0;
  }

  // Where chunks of cells begin, and where the last ends. Each has more cells than are near one, so that a cell is near
  // those of its own chunk and of the two beside it alone.
  std::vector<size_t> split() const {
    constexpr int kItems = 4096, kChunks = 64;
    const int least = std::max(kItems, items_.size / kChunks);
    std::vector<size_t> begins{0};
    for (size_t c = 1; c < list_.cells.size(); c++) {
      const ScoreCell& first = list_.cells[begins.back()];
      if (list_.cells[c].begin - first.begin >= least && list_.cells[c].key - first.key > near_) begins.push_back(c);
    }
    begins.push_back(list_.cells.size());
    return begins;
  }

  // Pairs of cells near each other, the higher of which is in this chunk; not those of two lone items.
  double meet_near(size_t begin, size_t end) {
    double losses = 0;
    for (size_t c = begin; c < end; c++) {
      const ScoreCell& higher = list_.cells[c];
      if (higher.is_dense()) losses += meet_itself(higher);
      if (higher.moments < 0) continue;
      for (size_t b = c; b-- > 0 && higher.key - list_.cells[b].key <= near_;) {
        const ScoreCell& lower = list_.cells[b];
        if (lower.moments >= 0 && (higher.is_dense() || lower.is_dense())) losses += meet(higher, lower);
      }
    }
    return losses;
  }

  double meet(const ScoreCell& higher, const ScoreCell& lower) {
    const CellPair<kCount>& pair = relation_.matrix(lower.key - higher.key);
    const double *above = of(moments_, higher), *below = of(moments_, lower);
    double loss[kCount] = {}, losses = 0;
    add_product(pair.loss, below, loss);
    for (int k = 0; k < kCount; k++) losses += loss[k] * above[k];
    add_slopes(pair, higher, lower, moments_, potentials_);
    if (directed_) add_slopes(pair, higher, lower, weighted_, bends_);
    return losses;
  }

  static void add_slopes(const CellPair<kCount>& pair, const ScoreCell& higher, const ScoreCell& lower,
                         std::vector<double>& from, std::vector<double>& to) {
    double slope[kCount] = {}, slope_turned[kCount] = {};
    add_product(pair.slope, of(from, lower), slope);
    add_product(pair.slope_turned, of(from, higher), slope_turned);
    for (int k = 0; k < kCount; k++) {
      of(to, higher)[k] -= slope[k];
      of(to, lower)[k] += slope_turned[k];
    }
  }

  // A cell's items do not keep to any order: sigma(w) of each pair is added to one of its items, and sigma(-w) to the
  // other. `finish` takes from these what an item adds to itself, and 1 for every lower item. A pair's loss is here the
  // mean of softplus(w) and softplus(-w).
  double meet_itself(const ScoreCell& cell) {
    const CellPair<kCount>& pair = relation_.matrix(0);
    const double* const its = of(moments_, cell);
    double loss[kCount] = {}, losses = 0;
    add_product(pair.loss, its, loss);
    for (int k = 0; k < kCount; k++) losses += loss[k] * its[k];
    const auto add = [&](const double* from, double* to) {
      double slope[kCount] = {};
      add_product(pair.slope_turned, from, slope);
      for (int k = 0; k < kCount; k++) to[k] += slope[k];
    };
    add(its, of(potentials_, cell));
    if (directed_) add(of(weighted_, cell), of(bends_, cell));
    return 0.5 * (losses - cell.size() * std::log(2.0));
  }

  // The cells [begin, begin + count), for `for_beyond`.
  struct Cells {
    const PairsByScore& all;
    size_t begin, count;

    const ScoreCell& cell(size_t c) const { return all.list_.cells[begin + c]; }
    size_t size() const { return count; }
    double key(size_t c) const { return cell(c).key; }
    Count places(size_t c) const { return {static_cast<double>(cell(c).size()), 0}; }
    Exponentials exponentials(size_t c, bool turned) const {
      if (cell(c).moments >= 0) return all.series_.of(all.of(all.moments_, cell(c)), turned);
      Exponentials sums;
      all.for_lone(cell(c), turned, [&](size_t, const Exponentials& its) { sums.add(its); });
      return sums;
    }
    bool has_directions() const { return all.directed_; }
    Exponentials weighted(size_t c, bool turned) const {
      if (cell(c).moments >= 0) return all.series_.of(all.of(all.weighted_, cell(c)), turned);
      Exponentials sums;
      all.for_lone(cell(c), turned,
                   [&](size_t at, const Exponentials& its) { sums.add(its.times(all.lone_.directions[at])); });
      return sums;
    }
  };

  template <typename Body>
  void for_lone(const ScoreCell& cell, bool turned, const Body& body) const {
    const size_t begin = lone_at(cell, cell.begin), end = begin + static_cast<size_t>(cell.size());
    for (size_t at = begin; at < end; at++) body(at, Exponentials::of(turned ? 1 / lone_.up[at] : lone_.up[at]));
  }

  // What the cells [begin, end) get from all that are far from them. Returns the losses of pairs with higher items.
  double meet_far(size_t begin, size_t end) {
    if (!relation_.has_far) return 0;
    const std::vector<ScoreCell>& cells = list_.cells;
    const double reach = kSeriesEnd<Real> / grid_.width;
    Exponentials all;
    double losses = 0;
    for (const bool up : {true, false}) {
      const Cells receivers{*this, begin, end - begin};
      size_t from = begin, to = end;
      while (up && to < cells.size() && cells[to].key - cells[end - 1].key <= reach) to++;
      while (!up && from > 0 && cells[begin].key - cells[from - 1].key <= reach) from--;
      const double sign = up ? 1 : -1;
      for_beyond(receivers, Cells{*this, from, to - from}, up, relation_.below, [&](size_t n, const Beyond& beyond) {
        if (beyond.small.sum[0] == 0) return;
        const ScoreCell& its = cells[begin + n];
        if (its.moments >= 0) {
          add_series(beyond.small, !up, sign, of(potentials_, its));
          if (directed_) add_series(beyond.weighted, !up, sign, of(bends_, its));
          if (up) losses += receivers.exponentials(n, false).times(beyond.small).dot(kLossTerms);
          return;
        }
        for_lone(its, !up, [&](size_t at, const Exponentials& powers) {
          const Exponentials small = beyond.small.times(powers);
          lone_.slopes[at] += sign * small.dot(kSlopeTerms);
          if (up) all.add(small);
          if (curved_) lone_.curvatures[at] += small.dot(kCurvatureTerms);
          if (directed_) lone_.bends[at] += beyond.weighted.times(powers).dot(kCurvatureTerms);
        });
      });
    }
    return losses + all.dot(kLossTerms);
  }

  void add_series(const Exponentials& beyond, bool turned, double sign, double* potential) const {
    double slope[kCount] = {};
    add_product(series_.slope[turned], beyond.sum, slope);
    for (int k = 0; k < kCount; k++) potential[k] += sign * slope[k];
  }

  // To the items; and what is linear in the scores. Returns the losses of that.
  double finish() {
    const size_t parts = static_cast<size_t>(list_.parts());
    std::vector<SumOfProducts> linear(parts);
    for_chunks(list_.parts(), threads_, [&](int64_t part) {
      SumOfProducts& its = linear[static_cast<size_t>(part)];
      list_.for_cells_in(static_cast<int>(part), [&](const ScoreCell& cell, int begin, int end) {
        if (cell.moments >= 0) {
          curved_ ? take_moments<true>(cell, begin, end, its) : take_moments<false>(cell, begin, end, its);
        } else {
          for (int n = begin; n < end; n++) finish(cell, n, 0, 0, 0, its);
        }
      });
    });
    SumOfProducts total;
    for (const SumOfProducts& its : linear) total.add(its);
    return beta_ * total.value();
  }

  // Of the items [begin, end) of a cell.
  template <bool kCurved>
  void take_moments(const ScoreCell& cell, int begin, int end, SumOfProducts& linear) {
    const Potential<kCount> potential(of(potentials_, cell)),
        bend(directed_ ? of(bends_, cell) : of(potentials_, cell));
    for (int first = begin; first < end; first += kLanes) {
      double slopes[kLanes], curvatures[kLanes] = {}, bends[kLanes] = {}, t[kLanes], unused[kLanes];
      load_places(first, end, t);
      potential.template evaluate<kCurved>(t, slopes, curvatures);
      if (directed_) bend.template evaluate<kCurved>(t, unused, bends);
      for (int n = first; n < std::min(first + kLanes, end); n++)
        finish(cell, n, slopes[n - first], curvatures[n - first] / grid_.half(), bends[n - first] / grid_.half(),
               linear);
    }
  }

  // Of item n: what it got by moments, and what else it gets.
  void finish(const ScoreCell& cell, int n, double slope, double curvature, double bend, SumOfProducts& linear) {
    const int item = list_.order[static_cast<size_t>(n)];
    const size_t i = static_cast<size_t>(item);
    const double worse = worse_.empty() ? items_.size - 1 - item : worse_[static_cast<size_t>(n)];
    if (cell.is_dense()) {
      // Its cell's other items are lower than it by one half on average. It has met itself.
      slope += cell.begin - worse - 0.5;
      curvature -= 0.25;
      if (directed_) bend -= 0.25 * items_.directions[i];
      linear.add(static_cast<double>(items_.rewards[i]), cell.begin + 0.5 * (cell.size() - 1) - worse);
    } else {
      const size_t at = lone_at(cell, n);
      slope += lone_.slopes[at] + (n - worse);
      if (curved_) curvature += lone_.curvatures[at];
      if (directed_) bend += lone_.bends[at];
      linear.add(static_cast<double>(items_.rewards[i]), n - worse);
    }
    if (curved_) items_.curvatures[i] += curvature;
    items_.slopes[i] += directed_ ? curvature * items_.directions[i] - bend : slope;
  }
};

}  // namespace
}  // namespace prefloss::cpu
