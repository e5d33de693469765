// What two nodes of a tree over a ranked group have with each other: all pairs of an item of the better one and an item
// of the worse. Compiled once per instruction set, so everything here has internal linkage.
#pragma once

#include <vector>

#include "cells.h"

namespace prefloss::cpu {
namespace {

// What a node's items have in a cell besides moments, for cells far above: with u the place in the cell, of all u, and
// of all -u; and what exp(u) and exp(-u) of an item are multiplied by for its slope.
struct FarCell {
  Exponentials rising, falling;
  double rising_potential = 0, falling_potential = 0;
};

// Sums over pairs: of the terms (loss + c (a + b)^2), the losses, and, where they are wanted, the squares of the
// losses.
struct PairSums {
  double terms = 0, losses = 0, squares = 0;

  void add(const PairSums& other) {
    terms += other.terms;
    losses += other.losses;
    squares += other.squares;
  }
};

// The items [begin, end) of a group in rank order, and their cells.
struct TreeNode {
  int begin = 0, end = 0, left = -1, right = -1;
  bool tied = false;                        // all items have one rank
  std::vector<int> cells;                   // numbers of cells, ascending
  std::vector<double> moments, potentials;  // kCount a cell
  std::vector<FarCell> far;                 // one a cell, where there are cells so far apart
  Powers rewards, scores;                   // of the items; scores from the origin on
  double constant = 0, linear = 0;          // what an item's slope gets, and what times its reward
  PairSums sums;

  int size() const { return end - begin; }
};

// Adds to the nodes' potentials.
template <typename Real>
struct Interaction {
  static constexpr int kCount = kPolynomials<Real>;
  const std::vector<double>& keys;  // of the cells
  double beta, center;
  bool statistics;

  PairSums run(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    PairSums sums = near(relation, better, worse);
    sums.add(far_above(relation, better, worse));
    if (relation.wide) sums.add(far_below(relation, better, worse));
    if (relation.wrong != 0) sums.add(turned_round(relation, better, worse));
    sums.terms = sums.losses + centering(better, worse);
    return sums;
  }

 private:
  // Label smoothing needs no cells: -wrong w over all pairs, and wrong^2 w^2 of the square.
  PairSums turned_round(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    const Powers &above = better.scores, below = worse.scores.shifted(relation.margin);
    better.constant += relation.wrong * beta * below.count;
    worse.constant -= relation.wrong * beta * above.count;
    return {0, -relation.wrong * (above.count * below.first - below.count * above.first),
            relation.wrong * relation.wrong * squares_of_differences(below, above)};
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
      double* potential = &better.potentials[a * kCount];
      double loss[kCount] = {}, slope[kCount] = {}, square[kCount] = {};
      for (size_t b = first; b < worse.cells.size() && distance(better, a, worse, b) <= relation.furthest; b++) {
        const CellPair<kCount>& pair = relation.at(distance(better, a, worse, b));
        const double* others = &worse.moments[b * kCount];
        double* other_potential = &worse.potentials[b * kCount];
        for (int l = 0; l < kCount; l++) {
          for (int k = 0; k < kCount; k++) {
            loss[k] += pair.loss[l][k] * others[l];
            slope[k] += pair.slope[l][k] * others[l];
            other_potential[k] += pair.slope_turned[l][k] * its[l];
          }
        }
        for (int l = 0; statistics && l < kCount; l++) {
          for (int k = 0; k < kCount; k++) square[k] += pair.square[l][k] * others[l];
        }
      }
      for (int k = 0; k < kCount; k++) {
        sums.losses += loss[k] * its[k];
        sums.squares += square[k] * its[k];
        potential[k] -= slope[k];
      }
    }
    return sums;
  }

  // Cells further apart than `furthest`: softplus(w) is w and sigma 1.
  PairSums far_above(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    PairSums sums;
    Powers above;  // of the worse cells from `first` on: of w where u = 0
    for (size_t a = better.cells.size(), first = worse.cells.size(); a-- > 0;) {
      if (a + 1 < better.cells.size()) above = above.shifted(2 * (key(better, a + 1) - key(better, a)));
      for (; first > 0 && distance(better, a, worse, first - 1) > relation.furthest; first--)
        above.add(powers(worse, first - 1).shifted(2 * distance(better, a, worse, first - 1) + relation.margin));
      if (above.count == 0) continue;
      const Powers its = powers(better, a);
      sums.losses += its.count * above.first - above.count * its.first;
      sums.squares += (1 - 2 * relation.wrong) * squares_of_differences(above, its);
      better.potentials[a * kCount] -= above.count;
    }
    double count = 0;  // of the better cells before `last`
    for (size_t b = 0, last = 0; b < worse.cells.size(); b++) {
      while (last < better.cells.size() && distance(better, last, worse, b) > relation.furthest)
        count += better.moments[last++ * kCount];
      worse.potentials[b * kCount] += count;
    }
    return sums;
  }

  // Of the items' u in a cell.
  static Powers powers(const TreeNode& node, size_t c) {
    const double* moments = &node.moments[c * kCount];
    return {moments[0], moments[1], (moments[0] + moments[2]) / 2};
  }

  // Cells nearer than `nearest`: both are exp(w).
  PairSums far_below(const Relation<Real>& relation, TreeNode& better, TreeNode& worse) const {
    PairSums sums;
    Exponentials below;  // of the worse cells before `first`: of w where u = 0
    for (size_t a = 0, first = 0; a < better.cells.size(); a++) {
      if (a > 0) below = below.shifted(-2 * (key(better, a) - key(better, a - 1)));
      for (; first < worse.cells.size() && distance(better, a, worse, first) < relation.nearest; first++)
        below.add(worse.far[first].rising.shifted(2 * distance(better, a, worse, first) + relation.margin));
      const Exponentials& its = better.far[a].falling;
      sums.losses += its.sum * below.sum;
      sums.squares += its.square * below.square - 2 * relation.wrong * (its.sum * below.first + its.first * below.sum);
      better.far[a].falling_potential -= below.sum;
    }
    Exponentials above;  // of the better cells from `last` on: of w where v = 0
    for (size_t b = worse.cells.size(), last = better.cells.size(); b-- > 0;) {
      if (b + 1 < worse.cells.size()) above = above.shifted(-2 * (key(worse, b + 1) - key(worse, b)));
      for (; last > 0 && distance(better, last - 1, worse, b) < relation.nearest; last--)
        above.add(better.far[last - 1].falling.shifted(2 * distance(better, last - 1, worse, b) + relation.margin));
      worse.far[b].rising_potential += above.sum;
    }
    return sums;
  }
};

}  // namespace
}  // namespace prefloss::cpu
