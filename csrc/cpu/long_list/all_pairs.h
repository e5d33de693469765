// All pairs of a large ranked group in time linear in its items. Compiled once per instruction set, so everything here
// has internal linkage.
//
// A binary tree over the items in rank order: each node has the pairs of its left half, which is better, with its right
// half. Pairs within a leaf are visited one by one. In the nodes next above the leaves, where few items share a cell of
// scores, items meet by themselves (sparse.h). Above, cells do, by their moments (interaction.h): these are added
// upwards, multiplied with those of siblings, and what comes of it is passed down.
#pragma once

#include <algorithm>
#include <iterator>
#include <vector>

#include "../group_visit.h"
#include "cells.h"
#include "interaction.h"
#include "leaf.h"
#include "sparse.h"

namespace prefloss::cpu {
namespace {

template <typename Real>
class AllPairs {
 public:
  AllPairs(RankedItems<Real>& items, const GroupOptions<Real>& options, int threads)
      : items_(items),
        beta_(static_cast<double>(options.ranked.formula.beta)),
        half_ties_(options.half_ties),
        threads_(threads),
        cells_(items, beta_, threads),
        series_(interpolation_, cells_.half()),
        bends_(items.directions.size(), 0.0),
        sums_{items.slopes.data(), by_item(items.curvatures), by_item(bends_), by_item(items.losses),
              by_item(items.directions)} {
    ranked_.margin = static_cast<double>(options.ranked.margin);
    for (Relation<Real>* each : {&ranked_, &tied_}) {
      if (each == &ranked_ || half_ties_)
        each->prepare(interpolation_, -cells_.range(), cells_.range(), cells_.width, threads);
    }
  }

  // Adds to the items' slopes and, where they are wanted, curvatures and losses: by their scores beta x. Where there
  // are directions, the slopes become the product of the second derivatives with these. Returns the sum of softplus(w).
  // Rewards must be finite.
  double run() {
    grow();
    visit_leaves();
    for (size_t depth = sparse_.size(); depth-- > 0;)
      for_nodes(sparse_[depth], [&](TreeNode& node, int threads) { interact_by_item(node, threads); });
    take_slopes();
    if (!depths_.empty()) {
      cells_.number_items();
      for_nodes(blocks_, [&](TreeNode& block, int) { start(block); });
      for (size_t depth = depths_.size(); depth-- > 0;)
        for_nodes(depths_[depth], [&](TreeNode& node, int) { gather(node); });
      for (const std::vector<int>& nodes : depths_) for_nodes(nodes, [&](TreeNode& node, int) { pass_down(node); });
      for_nodes(blocks_, [&](TreeNode& block, int) { finish(block); });
    }
    for (size_t i = 0; i < bends_.size(); i++)
      items_.slopes[i] = items_.curvatures[i] * items_.directions[i] - bends_[i];
    double losses = 0;
    for (const TreeNode& each : nodes_) losses += each.loss;
    return losses;
  }

 private:
  static constexpr int kCount = kPolynomials<Real>;
  // Nodes in which a cell has no more items than this, on average, are done an item at a time.
  static constexpr int kFewInCell = 12;

  RankedItems<Real>& items_;
  double beta_;
  bool half_ties_;
  int threads_;
  ListCells<Real> cells_;
  const Interpolation<kCount> interpolation_{};
  const Series<Real> series_;
  std::vector<double> bends_;  // the sums of sigma'(w) times the other item's direction
  ItemSums sums_;
  Relation<Real> ranked_, tied_;
  int leaf_ = kLeafOfProducts;  // items that one has at most
  std::vector<TreeNode> nodes_;
  std::vector<int> leaves_, blocks_;               // blocks: leaves, or the roots of what is done an item at a time
  std::vector<std::vector<int>> depths_, sparse_;  // the nodes that have children, of both kinds
  // Each node's items sorted by cell, in one or the other; a parent's are merged from one into the other.
  std::vector<SparseItem> items_by_cell_[2];

  static double* by_item(std::vector<double>& wanted) { return wanted.empty() ? nullptr : wanted.data(); }
  TreeNode& node(int n) { return nodes_[static_cast<size_t>(n)]; }
  // An item's place in its cell, from -1 to 1.
  double t(int i) const { return cells_.place(i, cells_.key(i)) / cells_.half(); }

  // Calls body(node, threads): few nodes have the threads to themselves, one after the other.
  template <typename Body>
  void for_nodes(const std::vector<int>& nodes, const Body& body) {
    const int64_t count = static_cast<int64_t>(nodes.size()), parts = std::min<int64_t>(count, 64);
    if (count == 1) return body(node(nodes[0]), threads_);
    for_chunks(parts, threads_, [&](int64_t part) {
      for (int64_t n = part * count / parts; n < (part + 1) * count / parts; n++)
        body(node(nodes[static_cast<size_t>(n)]), 1);
    });
  }

  // The largest nodes that are done an item at a time: so large that in nodes above, whatever the order of the ranks,
  // a cell has more than kFewInCell items on average. A cell of n items is in no more than n nodes.
  int largest_sparse() const {
    for (int64_t size = leaf_;; size *= 2) {
      const int64_t nodes = std::max<int64_t>(items_.size / size, 1);
      int64_t cells = 0;
      for (const int items : cells_.counts) cells += std::min<int64_t>(items, nodes);
      if (kFewInCell * cells <= items_.size) return static_cast<int>(size);
      if (nodes == 1) return items_.size;
    }
  }

  void grow() {
    const Way way = way_of<Real>(cells_.width * cells_.range() + std::abs(ranked_.margin));
    leaf_ = way == Way::kProduct          ? kLeafOfProducts
            : way == Way::kSmallerProduct ? kLeafOfSmallerProducts
                                          : kLeafOfExponentials;
    const int largest = largest_sparse();
    const int most = sums_.losses ? 1 : leaf_;  // leaves do not know each item's losses
    bool any_sparse = false;
    nodes_.reserve(static_cast<size_t>(4 * (items_.size / leaf_) + 16));
    nodes_.emplace_back();
    node(0).end = items_.size;
    std::vector<int> now{0};
    std::vector<bool> in_block{false};
    for (size_t depth = 0; !now.empty(); depth++) {
      std::vector<int> dense, sparse, next;
      std::vector<bool> next_in_block;
      for (size_t place = 0; place < now.size(); place++) {
        const int n = now[place], begin = node(n).begin, end = node(n).end;
        node(n).tied = end <= items_.level_end[static_cast<size_t>(begin)];
        const int split = end - begin > most ? split_of(begin, end) : begin;
        const bool is_leaf = split == begin, is_block = !in_block[place] && (is_leaf || end - begin <= largest);
        if (is_block) blocks_.push_back(n);
        if (is_leaf) {
          leaves_.push_back(n);
          continue;
        }
        any_sparse |= in_block[place] || is_block;
        (in_block[place] || is_block ? sparse : dense).push_back(n);
        for (const bool right : {false, true}) {
          const int child = static_cast<int>(nodes_.size());
          (right ? node(n).right : node(n).left) = child;
          next.push_back(child);
          next_in_block.push_back(in_block[place] || is_block);
          nodes_.emplace_back();
          nodes_.back().begin = right ? split : begin;
          nodes_.back().end = right ? end : split;
        }
      }
      if (!dense.empty()) depths_.push_back(dense);
      sparse_.push_back(sparse);
      now.swap(next);
      in_block.swap(next_in_block);
    }
    if (any_sparse) items_by_cell_[0].resize(static_cast<size_t>(items_.size));
    if (any_sparse) items_by_cell_[1].resize(static_cast<size_t>(items_.size));
  }

  // Where a rank begins, as near to the middle as there is. Where all are of one rank: `begin`, or, if such pairs
  // count, the middle.
  int split_of(int begin, int end) const {
    const int middle = begin + (end - begin) / 2, after = items_.level_end[static_cast<size_t>(middle)];
    const int before = items_.level_begin(middle);
    if (before > begin && (after >= end || middle - before <= after - middle)) return before;
    if (after < end) return after;
    return half_ties_ ? middle : begin;
  }

  const Relation<Real>& relation(const TreeNode& node) const { return node.tied ? tied_ : ranked_; }

  void visit_leaves() {
    const int64_t count = static_cast<int64_t>(leaves_.size()), parts = std::min<int64_t>(count, 64);
    for_chunks(parts, threads_, [&](int64_t part) {
      Leaf pairs;
      for (int64_t n = part * count / parts; n < (part + 1) * count / parts; n++) {
        TreeNode& leaf = node(leaves_[static_cast<size_t>(n)]);
        if (!leaf.tied || half_ties_) {
          pairs.load(items_, cells_, {beta_, ranked_.margin, half_ties_}, leaf.begin, leaf.end);
          leaf.loss = pairs.run(sums_);
        }
        if (!items_by_cell_[0].empty()) sort_by_cell(leaf);
      }
    });
  }

  // A leaf's items, for the nodes above it.
  void sort_by_cell(TreeNode& leaf) {
    leaf.in_second = false;
    SparseItem* const sorted = &items_by_cell_[0][static_cast<size_t>(leaf.begin)];
    for (int i = leaf.begin; i < leaf.end; i++) {
      const double key = cells_.key(i), place = cells_.place(i, key);
      sorted[i - leaf.begin] = {key, place, BothWays::of(place).up, 0, i};
    }
    // In the order of their cells; in one, in that of the list.
    std::sort(sorted, sorted + leaf.size(), [](const SparseItem& a, const SparseItem& b) {
      return a.key != b.key ? a.key < b.key : a.item < b.item;
    });
  }

  void interact_by_item(TreeNode& parent, int threads) {
    const TreeNode &left = node(parent.left), &right = node(parent.right);
    SparseItem* const from = items_by_cell_[left.in_second].data();
    if (left.in_second != right.in_second)
      std::copy_n(items_by_cell_[right.in_second].begin() + right.begin, right.size(), from + right.begin);
    SparseInteraction<Real> pairs(relation(parent), cells_.width, cells_.half(), sums_);
    pairs.better.set(from + left.begin, left.size());
    pairs.worse.set(from + right.begin, right.size());
    parent.loss = pairs.run(threads);
    parent.in_second = !left.in_second;
    std::merge(from + left.begin, from + left.end, from + right.begin, from + right.end,
               items_by_cell_[parent.in_second].data() + parent.begin,
               [](const SparseItem& a, const SparseItem& b) { return a.key < b.key; });
  }

  // From the items in the order of their cells, which are needed no longer.
  void take_slopes() {
    for_nodes(blocks_, [&](TreeNode& block, int) {
      const std::vector<SparseItem>& sorted = items_by_cell_[block.in_second];
      for (int i = block.begin; i < block.end && !sorted.empty(); i++) {
        const SparseItem& its = sorted[static_cast<size_t>(i)];
        sums_.slopes[its.item] += its.slope;
      }
    });
    items_by_cell_[0] = items_by_cell_[1] = {};
  }

  // A block's moments.
  void start(TreeNode& block) {
    const std::vector<int> places = number_cells_of(block);
    block.moments.assign(block.cells.size() * kCount, 0.0);
    block.weighted.assign(sums_.directions ? block.moments.size() : 0, 0.0);
    for (int i = block.begin; i < block.end; i++) {
      double polynomials[kCount];
      chebyshev<kCount>(t(i), polynomials);
      const size_t c = static_cast<size_t>(places[static_cast<size_t>(i - block.begin)]) * kCount;
      for (size_t k = 0; k < kCount; k++) block.moments[c + k] += polynomials[k];
      for (size_t k = 0; k < kCount && sums_.directions; k++)
        block.weighted[c + k] += sums_.directions[i] * polynomials[k];
    }
  }

  // Lists the cells of a block, and returns the place of each item's among them.
  std::vector<int> number_cells_of(TreeNode& block) const {
    std::vector<int> places(cells_.cell.begin() + block.begin, cells_.cell.begin() + block.end);
    block.cells.clear();
    if (cells_.keys.size() <= 8 * places.size()) {
      std::vector<int> place_of(cells_.keys.size(), -1);
      for (const int its : places) place_of[static_cast<size_t>(its)] = 0;
      for (size_t its = 0; its < place_of.size(); its++) {
        if (place_of[its] < 0) continue;
        place_of[its] = static_cast<int>(block.cells.size());
        block.cells.push_back(static_cast<int>(its));
      }
      for (int& its : places) its = place_of[static_cast<size_t>(its)];
      return places;
    }
    block.cells = places;
    std::sort(block.cells.begin(), block.cells.end());
    block.cells.erase(std::unique(block.cells.begin(), block.cells.end()), block.cells.end());
    for (int& its : places)
      its = static_cast<int>(std::lower_bound(block.cells.begin(), block.cells.end(), its) - block.cells.begin());
    return places;
  }

  // A node's moments; and the potentials that its children give to each other, after which they need no moments.
  void gather(TreeNode& parent) {
    TreeNode &left = node(parent.left), &right = node(parent.right);
    parent.loss = Interaction<Real>(cells_.keys, series_, cells_.half(), sums_.losses != nullptr)
                      .run(relation(parent), left, right);
    std::set_union(left.cells.begin(), left.cells.end(), right.cells.begin(), right.cells.end(),
                   std::back_inserter(parent.cells));
    parent.moments.assign(parent.cells.size() * kCount, 0.0);
    parent.weighted.assign(sums_.directions ? parent.moments.size() : 0, 0.0);
    for (TreeNode* child : {&left, &right}) {
      add_up(parent, *child, parent.moments, child->moments);
      add_up(parent, *child, parent.weighted, child->weighted);
      child->moments = child->weighted = {};
    }
  }

  // Adds a child's coefficients to its parent's, cell by cell; or the parent's to the child's. Either has none where
  // they are not wanted.
  static void add_up(const TreeNode& parent, const TreeNode& child, std::vector<double>& to,
                     const std::vector<double>& from) {
    for_cells_of(parent, child, [&](size_t its, size_t childs) {
      for (size_t k = 0; k < kCount && !from.empty(); k++) to[its + k] += from[childs + k];
    });
  }

  static void add_down(const TreeNode& parent, const TreeNode& child, const std::vector<double>& from,
                       std::vector<double>& to) {
    for_cells_of(parent, child, [&](size_t its, size_t childs) {
      for (size_t k = 0; k < kCount && !from.empty(); k++) to[childs + k] += from[its + k];
    });
  }

  // Calls body(place among the parent's coefficients, place among the child's) for the cells of a child.
  template <typename Body>
  static void for_cells_of(const TreeNode& parent, const TreeNode& child, const Body& body) {
    for (size_t c = 0, n = 0; c < child.cells.size(); c++) {
      while (parent.cells[n] != child.cells[c]) n++;
      body(n * kCount, c * kCount);
    }
  }

  // A node's potentials, added to those of its children.
  void pass_down(TreeNode& parent) {
    for (TreeNode* child : {&node(parent.left), &node(parent.right)}) {
      add_down(parent, *child, parent.potentials, child->potentials);
      add_down(parent, *child, parent.losses, child->losses);
      add_down(parent, *child, parent.bends, child->bends);
    }
    parent.potentials = parent.losses = parent.bends = {};
  }

  void finish(TreeNode& block) {
    const std::vector<int> places = number_cells_of(block);
    for (int i = block.begin; i < block.end; i++) {
      const size_t item = static_cast<size_t>(i),
                   c = static_cast<size_t>(places[item - static_cast<size_t>(block.begin)]);
      const double its = t(i);
      const double* const potentials = &block.potentials[c * kCount];
      if (sums_.losses) sums_.losses[item] += evaluate<kCount>(&block.losses[c * kCount], its).value;
      const Polynomial slope = evaluate<kCount>(potentials, its);
      sums_.slopes[item] += slope.value;
      if (sums_.curvatures) sums_.curvatures[item] += slope.derivative / cells_.half();
      if (sums_.bends) sums_.bends[item] += evaluate<kCount>(&block.bends[c * kCount], its).derivative / cells_.half();
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
