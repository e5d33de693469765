// The sums over all pairs of two nodes of the tree over a ranked group: an item of the better node with an item of the
// worse. Compiled once per instruction set, so everything here has internal linkage.
#pragma once

#include <vector>

#include "cells.h"

namespace prefloss::cpu {
namespace {

// Sums over pairs: of the terms (loss + c (a + b)^2), and of the losses.
struct PairSums {
  double terms = 0, losses = 0;

  void add(const PairSums& other) {
    terms += other.terms;
    losses += other.losses;
  }
};

// The items [begin, end) of a group in rank order, and their cells.
struct TreeNode {
  int begin = 0, end = 0, left = -1, right = -1;
  bool tied = false;                          // all items have one rank
  std::vector<int> cells;                     // numbers of cells, ascending
  std::vector<double> moments, potentials;    // kCount a cell
  Powers rewards, scores;                     // of the items; scores from the origin on
  double constant = 0, linear = 0;            // what an item's slope gets, and what times its reward
  std::vector<double> losses;                 // as potentials, of the sum of an item's losses, where it is wanted
  double loss_constant = 0, loss_linear = 0;  // what that sum gets, and what times the item's score
  PairSums sums;

  int size() const { return end - begin; }
};

// Adds to the nodes' potentials.
template <typename Real>
struct Interaction {
  static constexpr int kCount = kPolynomials<Real>;
  const std::vector<double>& keys;  // of the cells
  const Series<Real>& series;
  double beta, center;
  bool by_item;  // whether each item's losses are wanted

  PairSums run(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    if (by_item) {
      better.losses.assign(better.potentials.size(), 0.0);
      worse.losses.assign(worse.potentials.size(), 0.0);
    }
    PairSums sums = near(relation, better, worse);
    if (relation.has_far) {
      for (const bool above : {false, true}) sums.add(far(relation, above, better, worse));
    }
    if (relation.wrong != 0) sums.add(turned_round(relation, better, worse));
    sums.terms = sums.losses + centering(better, worse);
    return sums;
  }

 private:
  // Label smoothing needs no cells: -wrong w over all pairs.
  PairSums turned_round(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    const Powers &above = better.scores, below = worse.scores.shifted(relation.margin);
    better.constant += relation.wrong * beta * below.count;
    worse.constant -= relation.wrong * beta * above.count;
    better.loss_constant -= relation.wrong * below.first;
    better.loss_linear += relation.wrong * below.count;
    worse.loss_constant -= relation.wrong * (above.count * relation.margin - above.first);
    worse.loss_linear -= relation.wrong * above.count;
    return {0, -relation.wrong * (above.count * below.first - below.count * above.first)};
  }

  // Nor does c (a + b)^2.
  double centering(TreeNode& better, TreeNode& worse) const {
    if (center == 0) return 0;
    const Powers &a = better.rewards, &b = worse.rewards;
    better.constant += 2 * center * b.first;
    worse.constant += 2 * center * a.first;
    better.linear += 2 * center * b.count;
    worse.linear += 2 * center * a.count;
    return center * (b.count * a.second + a.count * b.second + 2 * a.first * b.first);
  }

  double distance(const TreeNode& better, size_t a, const TreeNode& worse, size_t b) const {
    return key(worse, b) - key(better, a);
  }

  double key(const TreeNode& node, size_t c) const { return keys[static_cast<size_t>(node.cells[c])]; }

  PairSums near(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    PairSums sums;
    for (size_t a = 0, first = 0; a < better.cells.size(); a++) {
      while (first < worse.cells.size() && distance(better, a, worse, first) < relation.nearest) first++;
      const double* its = &better.moments[a * kCount];
      double loss[kCount] = {}, slope[kCount] = {};
      for (size_t b = first; b < worse.cells.size() && distance(better, a, worse, b) <= relation.furthest; b++) {
        const CellPair<kCount>& pair = relation.at(distance(better, a, worse, b));
        const double* others = &worse.moments[b * kCount];
        double slope_turned[kCount] = {};
        add_product(pair.loss, others, loss);
        add_product(pair.slope, others, slope);
        add_product(pair.slope_turned, its, slope_turned);
        if (by_item) add_product_turned(pair.loss, its, &worse.losses[b * kCount]);
        for (int k = 0; k < kCount; k++) worse.potentials[b * kCount + k] += slope_turned[k];
      }
      for (int k = 0; k < kCount; k++) {
        sums.losses += loss[k] * its[k];
        better.potentials[a * kCount + k] -= slope[k];
        if (by_item) better.losses[a * kCount + k] += loss[k];
      }
    }
    return sums;
  }

  // Pairs of cells without a matrix, with w above 0 or below, by the series in exp(-|w|).
  PairSums far(const Relation<Real>& relation, bool above, TreeNode& better, TreeNode& worse) const {
    const double near = above ? relation.furthest : -relation.nearest;
    const double margin = above ? relation.margin : -relation.margin;
    PairSums sums;
    double both[kSeries] = {};  // sums of exp(-m |w|)
    for_beyond(better, worse, above, near, margin, [&](size_t a, const Beyond& beyond) {
      const double* moments = &better.moments[a * kCount];
      const Exponentials its = series.of(moments, !above);
#pragma omp simd
      for (int m = 0; m < kSeries; m++) both[m] += its.sum[m] * beyond.small.sum[m];
      double slope[kCount] = {};
      add_product(series.slope[!above], beyond.small.sum, slope);
      double* potential = &better.potentials[a * kCount];
      for (int k = 0; k < kCount; k++) potential[k] += above ? slope[k] : -slope[k];
      if (by_item) add_losses(beyond, !above, above, &better.losses[a * kCount]);
      if (!above) return;
      const Powers places = powers(moments);
      sums.losses += places.count * beyond.large.first - beyond.large.count * places.first;
      potential[0] -= beyond.large.count;
    });
    for (int m = 0; m < kSeries; m++) sums.losses += series.loss[m] * both[m];
    for_beyond(worse, better, !above, near, margin, [&](size_t b, const Beyond& beyond) {
      double slope[kCount] = {};
      add_product(series.slope[above], beyond.small.sum, slope);
      double* potential = &worse.potentials[b * kCount];
      for (int k = 0; k < kCount; k++) potential[k] += above ? -slope[k] : slope[k];
      if (by_item) add_losses(beyond, above, above, &worse.losses[b * kCount]);
      if (above) potential[0] += beyond.large.count;
    });
    return sums;
  }

  // Of |w|, where an item lies in the midst of its cell and the others in cells beyond those near it.
  struct Beyond {
    Powers large;
    Exponentials small;  // of -|w|

    Beyond moved(const Decay& further) const { return {large.shifted(further.by), small.shifted(further)}; }

    void add(const Beyond& other) {
      large.add(other.large);
      small.add(other.small);
    }
  };

  // What an item at u loses against those beyond; `turned`: |w| grows with u.
  void add_losses(const Beyond& beyond, bool turned, bool above, double* losses) const {
    series.add_losses(beyond.small, turned, losses);
    if (!above) return;
    losses[0] += beyond.large.first;
    losses[1] += turned ? beyond.large.count : -beyond.large.count;
  }

  // Calls with each cell of a node, and what lies beyond those near it: upwards, or downwards.
  template <typename Body>
  void for_beyond(const TreeNode& node, const TreeNode& others, bool up, double near, double margin,
                  const Body& body) const {
    Beyond beyond;
    Decay step, entry;
    const size_t count = node.cells.size(), other_count = others.cells.size();
    double before = 0;
    for (size_t n = 0, o = 0; n < count; n++) {
      const size_t c = up ? count - 1 - n : n;
      const double here = up ? -key(node, c) : key(node, c);
      if (beyond.large.count > 0) {
        step.set(2 * (here - before));
        beyond = beyond.moved(step);
      }
      before = here;
      for (; o < other_count; o++) {
        const size_t other = up ? other_count - 1 - o : o;
        const double distance = here - (up ? -key(others, other) : key(others, other));
        if (distance <= near) break;
        const double* moments = &others.moments[other * kCount];
        Powers places = powers(moments);
        if (!up) places.first = -places.first;
        entry.set(2 * distance + margin);
        beyond.add(Beyond{places, series.of(moments, up)}.moved(entry));
      }
      if (beyond.large.count > 0) body(c, beyond);
    }
  }

  // Of the items' u in a cell.
  static Powers powers(const double* moments) { return {moments[0], moments[1], (moments[0] + moments[2]) / 2}; }
};

}  // namespace
}  // namespace prefloss::cpu
