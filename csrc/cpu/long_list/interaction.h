// The sums over all pairs of two nodes of the tree over a ranked list: an item of the better node with an item of the
// worse, by the moments of their cells. Compiled once per instruction set, so everything here has internal linkage.
#pragma once

#include <vector>

#include "relation.h"

namespace prefloss::cpu {
namespace {

// The items [begin, end) of a list in rank order, and their cells.
struct TreeNode {
  int begin = 0, end = 0, left = -1, right = -1;
  bool tied = false;                        // all items have one rank
  bool in_second = false;                   // where its items are sorted by cell
  std::vector<int> cells;                   // numbers of cells, ascending
  std::vector<double> moments, potentials;  // kCount a cell: sums of T_k over its items; over T_k, the slope of an item
  std::vector<double> losses;               // as potentials, of the sum of an item's losses, where it is wanted
  std::vector<double> weighted, bends;      // as moments, of items times their directions; what these give to others
  double loss = 0;                          // the sum of its pairs' softplus(w)

  int size() const { return end - begin; }
};

// Adds to the nodes' potentials, and returns the sum of softplus(w).
template <typename Real>
class Interaction {
  static constexpr int kCount = kPolynomials<Real>;

 public:
  Interaction(const std::vector<double>& keys, const Series<Real>& series, double half, bool by_item)
      : keys_(keys), series_(series), half_(half), by_item_(by_item) {}

  double run(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    for (TreeNode* node : {&better, &worse}) {
      node->potentials.assign(node->moments.size(), 0.0);
      if (by_item_) node->losses.assign(node->moments.size(), 0.0);
      node->bends.assign(node->weighted.size(), 0.0);
    }
    double losses = near(relation, better, worse);
    if (relation.has_far)
      losses += far(relation.above, true, better, worse) + far(relation.below, false, better, worse);
    return losses;
  }

 private:
  const std::vector<double>& keys_;  // of the cells
  const Series<Real>& series_;
  double half_;
  bool by_item_;  // whether each item's losses are wanted

  double key(const TreeNode& node, size_t c) const { return keys_[static_cast<size_t>(node.cells[c])]; }

  double near(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    double losses = 0;
    for (size_t a = 0, first = 0; a < better.cells.size(); a++) {
      const auto distance = [&](size_t b) { return key(worse, b) - key(better, a); };
      while (first < worse.cells.size() && distance(first) < relation.nearest) first++;
      const double* its = &better.moments[a * kCount];
      double loss[kCount] = {}, slope[kCount] = {};
      for (size_t b = first; b < worse.cells.size() && distance(b) <= relation.furthest; b++) {
        const CellPair<kCount>& pair = relation.matrix(distance(b));
        const double* others = &worse.moments[b * kCount];
        double slope_turned[kCount] = {};
        add_product(pair.loss, others, loss);
        add_product(pair.slope, others, slope);
        add_product(pair.slope_turned, its, slope_turned);
        if (by_item_) add_product_turned(pair.loss, its, &worse.losses[b * kCount]);
        if (!worse.weighted.empty()) bend(pair, better, a, worse, b);
        for (int k = 0; k < kCount; k++) worse.potentials[b * kCount + k] += slope_turned[k];
      }
      for (int k = 0; k < kCount; k++) {
        losses += loss[k] * its[k];
        better.potentials[a * kCount + k] -= slope[k];
        if (by_item_) better.losses[a * kCount + k] += loss[k];
      }
    }
    return losses;
  }

  static void bend(const CellPair<kCount>& pair, TreeNode& better, size_t a, TreeNode& worse, size_t b) {
    double slope[kCount] = {}, slope_turned[kCount] = {};
    add_product(pair.slope, &worse.weighted[b * kCount], slope);
    add_product(pair.slope_turned, &better.weighted[a * kCount], slope_turned);
    for (size_t k = 0; k < kCount; k++) {
      better.bends[a * kCount + k] -= slope[k];
      worse.bends[b * kCount + k] += slope_turned[k];
    }
  }

  // A node's cells, for `for_beyond`.
  struct Cells {
    const Interaction& all;
    const TreeNode& node;

    size_t size() const { return node.cells.size(); }
    double key(size_t c) const { return all.key(node, c); }
    const double* moments(size_t c) const { return &node.moments[c * kCount]; }
    Exponentials exponentials(size_t c, bool turned) const { return all.series_.of(moments(c), turned); }
    bool has_directions() const { return !node.weighted.empty(); }
    Exponentials weighted(size_t c, bool turned) const { return all.series_.of(&node.weighted[c * kCount], turned); }
    Count places(size_t c) const { return {moments(c)[0], all.half_ * moments(c)[1]}; }
  };

  // Pairs of cells without a matrix, with w above 0 or below.
  double far(const FarApart& apart, bool above, TreeNode& better, TreeNode& worse) const {
    const Cells better_cells{*this, better}, worse_cells{*this, worse};
    double losses = 0;
    Exponentials both;
    for_beyond(better_cells, worse_cells, above, apart, [&](size_t a, const Beyond& beyond) {
      both.add(better_cells.exponentials(a, !above).times(beyond.small));
      add_slopes(beyond.small, !above, above ? 1 : -1, &better.potentials[a * kCount]);
      if (better_cells.has_directions()) add_slopes(beyond.weighted, !above, above ? 1 : -1, &better.bends[a * kCount]);
      if (by_item_) add_losses(beyond, !above, above, &better.losses[a * kCount]);
      if (!above) return;
      better.potentials[a * kCount] -= beyond.large.count;
      const Count places = better_cells.places(a);
      losses += places.count * beyond.large.sum - beyond.large.count * places.sum;
    });
    losses += both.dot(kLossTerms);
    for_beyond(worse_cells, better_cells, !above, apart, [&](size_t b, const Beyond& beyond) {
      add_slopes(beyond.small, above, above ? -1 : 1, &worse.potentials[b * kCount]);
      if (above) worse.potentials[b * kCount] += beyond.large.count;
      if (worse_cells.has_directions()) add_slopes(beyond.weighted, above, above ? -1 : 1, &worse.bends[b * kCount]);
      if (by_item_) add_losses(beyond, above, above, &worse.losses[b * kCount]);
    });
    return losses;
  }

  // The part of sigma(w) that is a series, of an item at u with all those beyond, times `sign`; `turned`: |w| grows
  // with u.
  void add_slopes(const Exponentials& beyond, bool turned, double sign, double* potential) const {
    double slope[kCount] = {};
    add_product(series_.slope[turned], beyond.sum, slope);
    for (int k = 0; k < kCount; k++) potential[k] += sign * slope[k];
  }

  void add_losses(const Beyond& beyond, bool turned, bool above, double* losses) const {
    series_.add_losses(beyond.small, turned, losses);
    if (!above) return;
    losses[0] += beyond.large.sum;
    losses[1] += (turned ? half_ : -half_) * beyond.large.count;
  }
};

}  // namespace
}  // namespace prefloss::cpu
