// The sums over all pairs of two nodes whose cells have few items each: an item at a time, and cells of many by their
// moments. Compiled once per instruction set, so everything here has internal linkage.
//
// Both nodes' items are sorted by their cells. Those in cells near each other meet one by one; what lies far apart is
// summed up from cell to cell.
#pragma once

#include <algorithm>
#include <vector>

#include "direct_pairs.h"
#include "relation.h"

namespace prefloss::cpu {
namespace {

// An item: the key of its cell, where in the cell it is, exp of that, and what its slope has got in such nodes.
struct SparseItem {
  double key, place, up, slope;
  int item;

  double down() const { return 1 / up; }
};

// Items of one cell, next to each other.
struct Run {
  double key;
  int begin, end;
  double places;         // their sum
  int polynomials = -1;  // its place among the runs that have moments, if it has one

  int size() const { return end - begin; }
};

// One node's items, sorted by their cells.
struct SparseItems {
  SparseItem* items = nullptr;
  std::vector<Run> runs;
  const double* directions = nullptr;  // of the list's items, where they are wanted

  void set(SparseItem* first, int count) {
    items = first;
    runs.clear();
    for (int begin = 0, end = 0; begin < count; begin = end) {
      double places = 0;
      for (end = begin; end < count && items[end].key == items[begin].key; end++) places += items[end].place;
      runs.push_back({items[begin].key, begin, end, places});
    }
  }

  // What `for_beyond` asks for.
  size_t size() const { return runs.size(); }
  double key(size_t n) const { return runs[n].key; }
  Count places(size_t n) const { return {static_cast<double>(runs[n].size()), runs[n].places}; }
  Exponentials exponentials(size_t n, bool turned) const {
    Exponentials sums;
    for_items_of(n, turned, [&](const Exponentials& its, int) { sums.add(its); });
    return sums;
  }
  bool has_directions() const { return directions != nullptr; }
  Exponentials weighted(size_t n, bool turned) const {
    Exponentials sums;
    for_items_of(n, turned, [&](const Exponentials& its, int item) { sums.add(its.times(directions[item])); });
    return sums;
  }

 private:
  template <typename Body>
  void for_items_of(size_t n, bool turned, const Body& body) const {
    for (int i = runs[n].begin; i < runs[n].end; i++)
      body(Exponentials::of(turned ? items[i].down() : items[i].up), items[i].item);
  }
};

// Adds to the items' sums, and returns the sum of softplus(w).
template <typename Real>
class SparseInteraction {
  static constexpr int kCount = kPolynomials<Real>;

 public:
  SparseInteraction(const Relation<Real>& relation, double width, double half, const ItemSums& sums)
      : relation_(relation), half_(half), greatest_(kSeriesFrom<Real> + 3 * width), sums_(sums) {
    better.directions = worse.directions = sums.directions;
  }

  SparseItems better, worse;

  double run(int threads) {
    double losses[2] = {0, 0};
    // Each side's items get what lies far from them by themselves.
    for_chunks(relation_.has_far ? 2 : 0, threads, [&](int64_t side) {
      for (const bool above : {true, false})
        losses[side] += side == 0 ? far<false>(better, worse, above) : far<true>(worse, better, above);
    });
    return losses[0] + near();
  }

 private:
  // Where more pairs than this meet in two cells, polynomials cost less.
  static constexpr int64_t kFewPairs = 160;

  const Relation<Real>& relation_;
  double half_, greatest_;
  ItemSums sums_;
  std::vector<double> others_, directions_, slopes_, curvatures_, bends_, losses_;  // of the items met one by one
  std::vector<double> moments_, potentials_, loss_potentials_, weighted_, weighted_potentials_;  // of runs
  std::vector<int> places_;

  // What the items of one side get from those that lie far from them on the other.
  template <bool kWorse>
  double far(const SparseItems& receivers, const SparseItems& sources, bool above) const {
    const FarApart& apart = above ? relation_.above : relation_.below;
    const bool up = kWorse ? !above : above, turned = kWorse ? above : !above;  // turned: |w| grows with the place
    double losses = 0;
    Exponentials all;
    for_beyond(receivers, sources, up, apart, [&](size_t n, const Beyond& beyond) {
      const bool series = beyond.small.sum[0] > 0;
      for (int i = receivers.runs[n].begin; i < receivers.runs[n].end; i++) {
        SparseItem& its = receivers.items[i];
        const size_t item = static_cast<size_t>(its.item);
        double slope = above ? beyond.large.count : 0;
        double loss = above ? beyond.large.sum + (turned ? its.place : -its.place) * beyond.large.count : 0;
        if (series) {
          const Exponentials powers = Exponentials::of(turned ? its.down() : its.up),
                             small = beyond.small.times(powers);
          const double part = small.dot(kSlopeTerms);
          slope += above ? -part : part;
          all.add(small);
          if (sums_.curvatures) sums_.curvatures[item] += small.dot(kCurvatureTerms);
          if (sums_.bends) sums_.bends[item] += beyond.weighted.times(powers).dot(kCurvatureTerms);
          if (sums_.losses) sums_.losses[item] += small.dot(kLossTerms);
        }
        its.slope += kWorse ? slope : -slope;
        if (sums_.losses) sums_.losses[item] += loss;
        losses += loss;
      }
    });
    return losses + all.dot(kLossTerms);
  }

  double near() {
    DirectLosses direct(greatest_);
    double losses = 0;
    for (auto* each : {&moments_, &potentials_, &loss_potentials_, &weighted_, &weighted_potentials_}) each->clear();
    for (size_t a = 0, first = 0; a < better.size(); a++) {
      Run& its = better.runs[a];
      const auto distance = [&](size_t b) { return worse.key(b) - better.key(a); };
      while (first < worse.size() && distance(first) < relation_.nearest) first++;
      others_.clear();
      directions_.clear();
      places_.clear();
      for (size_t b = first; b < worse.size() && distance(b) <= relation_.furthest; b++) {
        Run& run = worse.runs[b];
        if (static_cast<int64_t>(its.size()) * run.size() > kFewPairs)
          losses += by_moments(relation_.matrix(distance(b)), its, run);
        else
          list(run, relation_.factor(distance(b)));
      }
      if (!places_.empty()) visit(its, direct);
    }
    finish(better);
    finish(worse);
    return losses + direct.total();
  }

  // Lists the items of a run among those that are met one by one.
  void list(const Run& run, double factor) {
    for (int i = run.begin; i < run.end; i++) {
      others_.push_back(factor * worse.items[i].up);
      places_.push_back(i);
      if (sums_.directions) directions_.push_back(sums_.directions[worse.items[i].item]);
    }
  }

  // All pairs of a run with the listed items.
  void visit(const Run& run, DirectLosses& losses) {
    with_wanted(sums_.wanted(), [&](auto wanted) { visit<wanted>(run, losses); });
    for (size_t n = 0; n < places_.size(); n++) worse.items[places_[n]].slope += slopes_[n];
    const auto add = [&](const std::vector<double>& its, double* all) {
      for (size_t n = 0; n < places_.size() && all; n++) all[worse.items[places_[n]].item] += its[n];
    };
    add(curvatures_, sums_.curvatures);
    add(bends_, sums_.bends);
    if (sums_.losses) add_losses(run);
  }

  template <Wanted kWanted>
  void visit(const Run& run, DirectLosses& losses) {
    constexpr bool kCurvatures = kWanted != Wanted::kSlopes, kBends = kWanted == Wanted::kBends;
    const size_t room = (places_.size() + kLanes - 1) / kLanes * kLanes;
    others_.resize(room, 0.0);
    slopes_.assign(room, 0.0);
    if (kCurvatures) curvatures_.assign(room, 0.0);
    if (kBends) bends_.assign(room, 0.0);
    if (kBends) directions_.resize(room, 0.0);
    for (int top = run.begin; top < run.end; top += kDirectRows) {
      DirectRows<kWanted> rows(std::min(kDirectRows, run.end - top));
      for (int row = 0; row < rows.count; row++) {
        rows.down[row] = better.items[top + row].down();
        if (kBends) rows.directions[row] = sums_.directions[better.items[top + row].item];
      }
      for (size_t n = 0; n < room; n += kLanes) {
        DirectItems others;
        others.up = &others_[n];
        others.slopes = &slopes_[n];
        if (kCurvatures) others.curvatures = &curvatures_[n];
        if (kBends) others.bends = &bends_[n];
        if (kBends) others.directions = &directions_[n];
        if (rows.count == kDirectRows)
          add_all<Way::kProduct>(rows, others, losses, Logit());
        else
          add_some<Way::kProduct>(
              rows, others, losses, Logit(), [](int, int) { return true; }, [](int, int) { return true; });
      }
      for (int row = 0; row < rows.count; row++) {
        SparseItem& item = better.items[top + row];
        item.slope -= sum_of_lanes(rows.slopes[row]);
        if (kCurvatures) sums_.curvatures[item.item] += sum_of_lanes(rows.curvatures[row]);
        if (kBends) sums_.bends[item.item] += sum_of_lanes(rows.bends[row]);
      }
    }
  }

  // The losses of each item of the same pairs.
  void add_losses(const Run& run) {
    losses_.assign(others_.size(), 0.0);
    for (int i = run.begin; i < run.end; i++) {
      const double its = better.items[i].down();
      double total = 0;
#pragma omp simd reduction(+ : total)
      for (size_t n = 0; n < others_.size(); n++) {
        const double loss = log1p_positive(its * others_[n]);
        losses_[n] += loss;
        total += loss;
      }
      sums_.losses[better.items[i].item] += total;
    }
    for (size_t n = 0; n < places_.size(); n++) sums_.losses[worse.items[places_[n]].item] += losses_[n];
  }

  double by_moments(const CellPair<kCount>& pair, Run& its, Run& others) {
    for (auto* run : {&its, &others}) set_moments(run == &its ? better : worse, *run);
    const double *above = of(moments_, its), *below = of(moments_, others);
    double loss[kCount] = {}, slope[kCount] = {}, slope_turned[kCount] = {}, losses = 0;
    add_product(pair.loss, below, loss);
    add_product(pair.slope, below, slope);
    add_product(pair.slope_turned, above, slope_turned);
    double *const better_slopes = of(potentials_, its), *const worse_slopes = of(potentials_, others);
    for (int k = 0; k < kCount; k++) {
      better_slopes[k] -= slope[k];
      worse_slopes[k] += slope_turned[k];
      losses += loss[k] * above[k];
    }
    if (sums_.bends) {
      double along[kCount] = {}, along_turned[kCount] = {};
      add_product(pair.slope, of(weighted_, others), along);
      add_product(pair.slope_turned, of(weighted_, its), along_turned);
      for (int k = 0; k < kCount; k++) {
        of(weighted_potentials_, its)[k] -= along[k];
        of(weighted_potentials_, others)[k] += along_turned[k];
      }
    }
    if (!sums_.losses) return losses;
    for (int k = 0; k < kCount; k++) of(loss_potentials_, its)[k] += loss[k];
    add_product_turned(pair.loss, above, of(loss_potentials_, others));
    return losses;
  }

  static double* of(std::vector<double>& all, const Run& run) {
    return &all[static_cast<size_t>(run.polynomials) * kCount];
  }

  void set_moments(const SparseItems& side, Run& run) {
    if (run.polynomials >= 0) return;
    run.polynomials = static_cast<int>(moments_.size() / kCount);
    const size_t end = moments_.size() + kCount;
    moments_.resize(end, 0.0);
    potentials_.resize(end, 0.0);
    if (sums_.losses) loss_potentials_.resize(end, 0.0);
    if (sums_.bends) weighted_.resize(end, 0.0);
    if (sums_.bends) weighted_potentials_.resize(end, 0.0);
    double* const moments = of(moments_, run);
    for (int i = run.begin; i < run.end; i++) {
      double polynomials[kCount];
      chebyshev<kCount>(side.items[i].place / half_, polynomials);
      for (int k = 0; k < kCount; k++) moments[k] += polynomials[k];
      if (!sums_.bends) continue;
      const double direction = sums_.directions[side.items[i].item];
      for (int k = 0; k < kCount; k++) of(weighted_, run)[k] += direction * polynomials[k];
    }
  }

  // From the potentials of runs to their items.
  void finish(const SparseItems& side) {
    for (const Run& run : side.runs) {
      if (run.polynomials < 0) continue;
      for (int i = run.begin; i < run.end; i++) {
        const int item = side.items[i].item;
        const double t = side.items[i].place / half_;
        const Polynomial slope = evaluate<kCount>(of(potentials_, run), t);
        side.items[i].slope += slope.value;
        if (sums_.curvatures) sums_.curvatures[item] += slope.derivative / half_;
        if (sums_.bends) sums_.bends[item] += evaluate<kCount>(of(weighted_potentials_, run), t).derivative / half_;
        if (sums_.losses) sums_.losses[item] += evaluate<kCount>(of(loss_potentials_, run), t).value;
      }
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
