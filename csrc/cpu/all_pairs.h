// All pairs of a large ranked group in time linear in its items. Compiled once per instruction set, so everything here
// has internal linkage.
//
// softplus and sigma are analytic in the strip |Im z| < pi. So on cells of scores of width 2 they are polynomials to
// the last bit, and the sum over the pairs of two sets of items factorises: items to moments, moments times moments,
// moments to items. A binary tree over the items in rank order adds moments upwards, multiplies those of siblings, and
// passes potentials downwards; pairs within a leaf are visited one by one. Cells exist only where there are scores. Two
// of them interact by a matrix that depends on their distance alone, and by plain sums where softplus is linear or an
// exponential, which factorises by itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "group_rows.h"

namespace prefloss::cpu {
namespace {

constexpr double kPi = 3.14159265358979323846;

// How many polynomials. From |w| = kSimpleFrom on, softplus(w) is w, or exp(w), and sigma(w) is 1, or exp(w), to the
// last bit of Real.
template <typename Real>
constexpr int kPolynomials = sizeof(Real) == sizeof(double) ? 20 : 12;
template <typename Real>
constexpr double kSimpleFrom = sizeof(Real) == sizeof(double) ? 38 : 18;

// A leaf has no more items than this. Where there are many cells, each has few of a node's items, and pairs cost less.
constexpr int kLeaf = 96, kLeafOfManyCells = 768;
constexpr size_t kManyCells = 40;

// The Chebyshev polynomials of u in [-1, 1].
template <int kCount>
void chebyshev(double u, double* values) {
  values[0] = 1;
  values[1] = u;
  for (int k = 2; k < kCount; k++) values[k] = 2 * u * values[k - 1] - values[k - 2];
}

// The coefficients of softplus(w) and sigma(w), w = 2d + v - u + shift, over T_k(u) T_l(v), for each distance d of
// cells.
template <int kCount>
struct CellPair {
  double loss[kCount][kCount], slope[kCount][kCount], slope_turned[kCount][kCount];  // [l][k], [l][k], [k][l]

  void set(double center) {
    double nodes[kCount], transform[kCount][kCount];
    for (int n = 0; n < kCount; n++) nodes[n] = std::cos((2 * n + 1) * kPi / (2 * kCount));
    for (int k = 0; k < kCount; k++) {
      for (int n = 0; n < kCount; n++)
        transform[k][n] = (k == 0 ? 1.0 : 2.0) / kCount * std::cos(k * (2 * n + 1) * kPi / (2 * kCount));
    }
    double values[2][kCount][kCount];  // at u[m], v[n]
    for (int m = 0; m < kCount; m++) {
      for (int n = 0; n < kCount; n++) {
        const double w = center + nodes[n] - nodes[m], e = std::exp(-std::abs(w));
        values[0][m][n] = std::log1p(e) + std::max(w, 0.0);
        values[1][m][n] = (w < 0 ? e : 1) / (1 + e);
      }
    }
    for (int which = 0; which < 2; which++) {
      double half[kCount][kCount] = {}, full[kCount][kCount] = {};  // over u: [k][n], then over v: [k][l]
      for (int k = 0; k < kCount; k++) {
        for (int m = 0; m < kCount; m++) {
          for (int n = 0; n < kCount; n++) half[k][n] += transform[k][m] * values[which][m][n];
        }
      }
      for (int l = 0; l < kCount; l++) {
        for (int k = 0; k < kCount; k++) {
          for (int n = 0; n < kCount; n++) full[k][l] += half[k][n] * transform[l][n];
        }
      }
      for (int k = 0; k < kCount; k++) {
        for (int l = 0; l < kCount; l++) {
          (which == 0 ? loss : slope)[l][k] = full[k][l];
          if (which == 1) slope_turned[k][l] = full[k][l];
        }
      }
    }
  }
};

// Of the items of a cell: the sums of exp(u) and exp(-u), with u the place in the cell, and what those of an item are
// multiplied by for its slope.
struct Exponentials {
  double rising = 0, falling = 0, rising_potential = 0, falling_potential = 0;
};

// The items [begin, end) of a group in rank order, and their cells.
struct TreeNode {
  int begin = 0, end = 0, left = -1, right = -1;
  std::vector<int> cells;                   // numbers of cells, ascending
  std::vector<double> moments, potentials;  // kCount a cell
  std::vector<Exponentials> exponentials;   // one a cell
  double rewards = 0, squares = 0;          // sums over the items
  double constant = 0, linear = 0;          // what an item's slope gets, and what times its reward
  double terms = 0;

  int size() const { return end - begin; }
};

template <typename Real>
class AllPairs {
 public:
  AllPairs(RankedItems<Real>& items, const GroupOptions<Real>& options, int threads)
      : items_(items), options_(options), threads_(threads) {
    const Formula<Real>& formula = options.ranked.formula;
    beta_ = static_cast<double>(formula.beta);
    margin_ = static_cast<double>(options.ranked.margin);
    center_ = static_cast<double>(formula.center);
    wrong_ = 1.0 - static_cast<double>(formula.smoothed(options.ranked.target));
  }

  // Adds to the items' slopes, and returns the sum of the terms. Rewards must be finite.
  double run() {
    number_cells();
    prepare_matrices();
    grow();
    for_nodes(leaves_, [&](TreeNode& leaf) { start(leaf); });
    for (size_t depth = depths_.size(); depth-- > 0;) for_nodes(depths_[depth], [&](TreeNode& node) { gather(node); });
    for (const std::vector<int>& nodes : depths_) for_nodes(nodes, [&](TreeNode& node) { interact(node); });
    for_nodes(leaves_, [&](TreeNode& leaf) { finish(leaf); });
    double total = 0;
    for (const TreeNode& node : nodes_) total += node.terms;
    return total;
  }

 private:
  static constexpr int kCount = kPolynomials<Real>;

  RankedItems<Real>& items_;
  const GroupOptions<Real>& options_;
  int threads_;
  double beta_, margin_, center_, wrong_;
  std::vector<double> keys_;  // of the cells: the scores in [2 key, 2 key + 2) are in it
  std::vector<int> cell_;     // of each item
  int leaf_ = kLeaf;
  std::vector<CellPair<kCount>> matrices_;
  double nearest_ = 0, furthest_ = -1;  // distances of cells that have a matrix
  bool wide_ = false;                   // whether there are cells further apart, below
  std::vector<TreeNode> nodes_;
  std::vector<int> leaves_;
  std::vector<std::vector<int>> depths_;  // the nodes that have children

  double score(int i) const { return beta_ * static_cast<double>(items_.rewards[static_cast<size_t>(i)]); }
  double key_of(int i) const { return std::floor(score(i) / 2); }
  // Where in its cell an item's score is, from -1 to 1.
  double place(int i) const { return score(i) - 2 * keys_[static_cast<size_t>(cell_[static_cast<size_t>(i)])] - 1; }

  template <typename Body>
  void for_nodes(const std::vector<int>& nodes, const Body& body) {
    const int64_t count = static_cast<int64_t>(nodes.size()), parts = std::min<int64_t>(count, 64);
    for_chunks(parts, threads_, [&](int64_t part) {
      for (int64_t n = part * count / parts; n < (part + 1) * count / parts; n++)
        body(nodes_[static_cast<size_t>(nodes[static_cast<size_t>(n)])]);
    });
  }

  void number_cells() {
    const int size = items_.size;
    std::vector<double> key(static_cast<size_t>(size));
    double low = HUGE_VAL, high = -HUGE_VAL;
    for (int i = 0; i < size; i++) {
      const double its = key_of(i);
      key[static_cast<size_t>(i)] = its;
      low = std::min(low, its);
      high = std::max(high, its);
    }
    cell_.resize(static_cast<size_t>(size));
    if (high - low < 4.0 * size) {  // a table of all cells there could be
      std::vector<int> number(static_cast<size_t>(high - low) + 1, 0);
      for (const double its : key) number[static_cast<size_t>(its - low)] = 1;
      for (size_t n = 0; n < number.size(); n++) {
        if (number[n] == 0) continue;
        number[n] = static_cast<int>(keys_.size());
        keys_.push_back(low + static_cast<double>(n));
      }
      for (size_t i = 0; i < key.size(); i++) cell_[i] = number[static_cast<size_t>(key[i] - low)];
      return;
    }
    keys_ = key;
    std::sort(keys_.begin(), keys_.end());
    keys_.erase(std::unique(keys_.begin(), keys_.end()), keys_.end());
    for (size_t i = 0; i < key.size(); i++)
      cell_[i] = static_cast<int>(std::lower_bound(keys_.begin(), keys_.end(), key[i]) - keys_.begin());
  }

  // w = x_worse - x_better + margin lies within 2 of twice the distance of the cells plus the margin.
  void prepare_matrices() {
    const double range = keys_.back() - keys_.front();
    nearest_ = std::max(-range, std::ceil((-kSimpleFrom<Real> - 2 - margin_) / 2));
    furthest_ = std::min(range, std::floor((kSimpleFrom<Real> + 2 - margin_) / 2));
    const int64_t count = furthest_ >= nearest_ ? static_cast<int64_t>(furthest_ - nearest_) + 1 : 0;
    wide_ = nearest_ > -range;
    if (keys_.size() > kManyCells) leaf_ = kLeafOfManyCells;
    matrices_.resize(static_cast<size_t>(count));
    for_chunks(count, threads_, [&](int64_t n) {
      matrices_[static_cast<size_t>(n)].set(2 * (nearest_ + static_cast<double>(n)) + margin_);
    });
  }

  void grow() {
    nodes_.reserve(static_cast<size_t>(4 * items_.size / leaf_ + 16));
    nodes_.emplace_back();
    nodes_[0].end = items_.size;
    std::vector<int> now{0};
    while (!now.empty()) {
      std::vector<int> parents, next;
      for (const int n : now) {
        const int begin = nodes_[static_cast<size_t>(n)].begin, end = nodes_[static_cast<size_t>(n)].end;
        const int split = end - begin > leaf_ ? split_of(begin, end) : begin;
        if (split == begin) {
          leaves_.push_back(n);
          continue;
        }
        parents.push_back(n);
        for (const bool right : {false, true}) {
          const int child = static_cast<int>(nodes_.size());
          (right ? nodes_[static_cast<size_t>(n)].right : nodes_[static_cast<size_t>(n)].left) = child;
          next.push_back(child);
          nodes_.emplace_back();
          nodes_.back().begin = right ? split : begin;
          nodes_.back().end = right ? end : split;
        }
      }
      if (!parents.empty()) depths_.push_back(parents);
      now.swap(next);
    }
  }

  // Where a rank begins, as near to the middle as there is; `begin` where all are of one rank.
  int split_of(int begin, int end) const {
    const int middle = begin + (end - begin) / 2, after = items_.level_end[static_cast<size_t>(middle)];
    const int before = items_.level_begin(middle);
    if (before > begin && (after >= end || middle - before <= after - middle)) return before;
    return after < end ? after : begin;
  }

  // A leaf's own pairs, and its moments.
  void start(TreeNode& leaf) {
    if (items_.level_end[static_cast<size_t>(leaf.begin)] < leaf.end) {
      RankedItems<Real> own;
      own.copy_of(items_, leaf.begin, leaf.end);
      double sums[kGroupSums];
      forward_group(own, options_, false, sums);
      leaf.terms = sums[kTerms];
      for (int i = leaf.begin; i < leaf.end; i++)
        items_.slopes[static_cast<size_t>(i)] = own.slopes[static_cast<size_t>(i - leaf.begin)];
    }
    leaf.cells.assign(cell_.begin() + leaf.begin, cell_.begin() + leaf.end);
    std::sort(leaf.cells.begin(), leaf.cells.end());
    leaf.cells.erase(std::unique(leaf.cells.begin(), leaf.cells.end()), leaf.cells.end());
    leaf.moments.assign(leaf.cells.size() * kCount, 0.0);
    leaf.exponentials.assign(leaf.cells.size(), {});
    for (int i = leaf.begin; i < leaf.end; i++) {
      const double reward = static_cast<double>(items_.rewards[static_cast<size_t>(i)]), u = place(i);
      leaf.rewards += reward;
      leaf.squares += reward * reward;
      double polynomials[kCount];
      chebyshev<kCount>(u, polynomials);
      const size_t c = position(leaf, cell_[static_cast<size_t>(i)]);
      double* moments = &leaf.moments[c * kCount];
      for (int k = 0; k < kCount; k++) moments[k] += polynomials[k];
      if (!wide_) continue;
      const double e = std::exp(u);
      leaf.exponentials[c].rising += e;
      leaf.exponentials[c].falling += 1 / e;
    }
  }

  static size_t position(const TreeNode& node, int cell) {
    return static_cast<size_t>(std::lower_bound(node.cells.begin(), node.cells.end(), cell) - node.cells.begin());
  }

  void gather(TreeNode& node) {
    const TreeNode &left = nodes_[static_cast<size_t>(node.left)], &right = nodes_[static_cast<size_t>(node.right)];
    node.rewards = left.rewards + right.rewards;
    node.squares = left.squares + right.squares;
    std::set_union(left.cells.begin(), left.cells.end(), right.cells.begin(), right.cells.end(),
                   std::back_inserter(node.cells));
    node.moments.assign(node.cells.size() * kCount, 0.0);
    node.exponentials.assign(node.cells.size(), {});
    for (const TreeNode* child : {&left, &right}) {
      for (size_t c = 0, n = 0; c < child->cells.size(); c++) {
        while (node.cells[n] != child->cells[c]) n++;
        const double* its = &child->moments[c * kCount];
        double* moments = &node.moments[n * kCount];
        for (int k = 0; k < kCount; k++) moments[k] += its[k];
        node.exponentials[n].rising += child->exponentials[c].rising;
        node.exponentials[n].falling += child->exponentials[c].falling;
      }
    }
  }

  // What a node's children have of its potentials, and of each other.
  void interact(TreeNode& node) {
    TreeNode &left = nodes_[static_cast<size_t>(node.left)], &right = nodes_[static_cast<size_t>(node.right)];
    for (TreeNode* child : {&left, &right}) {
      child->constant = node.constant;
      child->linear = node.linear;
      child->potentials.assign(child->cells.size() * kCount, 0.0);
      if (node.potentials.empty()) continue;
      for (size_t c = 0, n = 0; c < child->cells.size(); c++) {
        while (node.cells[n] != child->cells[c]) n++;
        std::copy_n(&node.potentials[n * kCount], kCount, &child->potentials[c * kCount]);
        child->exponentials[c].rising_potential = node.exponentials[n].rising_potential;
        child->exponentials[c].falling_potential = node.exponentials[n].falling_potential;
      }
    }
    node.potentials = {};
    node.terms = plain_sums(left, right) + near(left, right) + far_above(left, right);
    if (wide_) node.terms += far_below(left, right);
  }

  // Label smoothing and centring need no cells: (1 - t) z and c (a + b)^2 over all pairs.
  double plain_sums(TreeNode& better, TreeNode& worse) const {
    const double n = better.size(), m = worse.size();
    double terms = 0;
    if (wrong_ != 0) {
      terms += wrong_ * (beta_ * (m * better.rewards - n * worse.rewards) - margin_ * n * m);
      better.constant += wrong_ * beta_ * m;
      worse.constant -= wrong_ * beta_ * n;
    }
    if (center_ != 0) {
      terms += center_ * (m * better.squares + n * worse.squares + 2 * better.rewards * worse.rewards);
      better.constant += 2 * center_ * worse.rewards;
      worse.constant += 2 * center_ * better.rewards;
      better.linear += 2 * center_ * m;
      worse.linear += 2 * center_ * n;
    }
    return terms;
  }

  double distance(const TreeNode& better, size_t a, const TreeNode& worse, size_t b) const {
    return keys_[static_cast<size_t>(worse.cells[b])] - keys_[static_cast<size_t>(better.cells[a])];
  }

  double near(TreeNode& better, TreeNode& worse) const {
    double terms = 0;
    for (size_t a = 0, first = 0; a < better.cells.size(); a++) {
      while (first < worse.cells.size() && distance(better, a, worse, first) < nearest_) first++;
      const double* its = &better.moments[a * kCount];
      double* potential = &better.potentials[a * kCount];
      double loss[kCount] = {}, slope[kCount] = {};
      for (size_t b = first; b < worse.cells.size() && distance(better, a, worse, b) <= furthest_; b++) {
        const CellPair<kCount>& pair = matrices_[static_cast<size_t>(distance(better, a, worse, b) - nearest_)];
        const double* others = &worse.moments[b * kCount];
        double* other_potential = &worse.potentials[b * kCount];
        for (int l = 0; l < kCount; l++) {
          for (int k = 0; k < kCount; k++) {
            loss[k] += pair.loss[l][k] * others[l];
            slope[k] += pair.slope[l][k] * others[l];
            other_potential[k] += pair.slope_turned[l][k] * its[l];
          }
        }
      }
      for (int k = 0; k < kCount; k++) {
        terms += loss[k] * its[k];
        potential[k] -= slope[k];
      }
    }
    return terms;
  }

  // Cells further apart than `furthest_`: softplus(w) is w and sigma 1.
  double far_above(TreeNode& better, TreeNode& worse) const {
    double terms = 0, counts = 0, scores = 0;  // of the worse cells from `first` on
    size_t first = worse.cells.size();
    for (size_t a = better.cells.size(); a-- > 0;) {
      while (first > 0 && distance(better, a, worse, first - 1) > furthest_) {
        first--;
        counts += worse.moments[first * kCount];
        scores += sum_of_scores(worse, first);
      }
      if (counts == 0) continue;
      const double its = better.moments[a * kCount];
      terms += its * (scores + counts * margin_) - counts * sum_of_scores(better, a);
      better.potentials[a * kCount] -= counts;
    }
    counts = 0;
    size_t last = 0;  // the better cells before it
    for (size_t b = 0; b < worse.cells.size(); b++) {
      while (last < better.cells.size() && distance(better, last, worse, b) > furthest_)
        counts += better.moments[last++ * kCount];
      worse.potentials[b * kCount] += counts;
    }
    return terms;
  }

  // Cells nearer than `nearest_`: both are exp(w) = exp(v) exp(-u) exp(2d + margin). The running sums are kept relative
  // to the cell that they are used for, so that nothing overflows.
  double far_below(TreeNode& better, TreeNode& worse) const {
    double terms = 0, sum = 0, key = keys_[static_cast<size_t>(better.cells.front())];
    for (size_t a = 0, first = 0; a < better.cells.size(); a++) {  // worse cells so far below this one
      const double its_key = keys_[static_cast<size_t>(better.cells[a])];
      sum *= std::exp(2 * (key - its_key));
      key = its_key;
      for (; first < worse.cells.size() && distance(better, a, worse, first) < nearest_; first++)
        sum += worse.exponentials[first].rising * std::exp(2 * distance(better, a, worse, first) + margin_);
      terms += better.exponentials[a].falling * sum;
      better.exponentials[a].falling_potential -= sum;
    }
    sum = 0;
    key = keys_[static_cast<size_t>(worse.cells.back())];
    for (size_t b = worse.cells.size(), last = better.cells.size(); b-- > 0;) {  // better cells so far above this one
      const double its_key = keys_[static_cast<size_t>(worse.cells[b])];
      sum *= std::exp(2 * (its_key - key));
      key = its_key;
      for (; last > 0 && distance(better, last - 1, worse, b) < nearest_; last--)
        sum += better.exponentials[last - 1].falling * std::exp(2 * distance(better, last - 1, worse, b) + margin_);
      worse.exponentials[b].rising_potential += sum;
    }
    return terms;
  }

  double sum_of_scores(const TreeNode& node, size_t c) const {
    return (2 * keys_[static_cast<size_t>(node.cells[c])] + 1) * node.moments[c * kCount] +
           node.moments[c * kCount + 1];
  }

  void finish(TreeNode& leaf) {
    if (leaf.potentials.empty()) return;
    for (int i = leaf.begin; i < leaf.end; i++) {
      const double u = place(i);
      const size_t c = position(leaf, cell_[static_cast<size_t>(i)]);
      double polynomials[kCount], slope = 0;
      chebyshev<kCount>(u, polynomials);
      const double* potential = &leaf.potentials[c * kCount];
      for (int k = 0; k < kCount; k++) slope += potential[k] * polynomials[k];
      if (wide_) {
        const double e = std::exp(u);
        slope += leaf.exponentials[c].rising_potential * e + leaf.exponentials[c].falling_potential / e;
      }
      items_.slopes[static_cast<size_t>(i)] +=
          beta_ * slope + leaf.constant + leaf.linear * static_cast<double>(items_.rewards[static_cast<size_t>(i)]);
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
