// All pairs of a large ranked group in time linear in its items. Compiled once per instruction set, so everything here
// has internal linkage.
//
// The sum over the pairs of two sets of items factorises, cell by cell: items to moments, moments times moments,
// moments to items. A binary tree over the items in rank order adds moments upwards, multiplies those of siblings, and
// passes potentials downwards; pairs within a leaf are visited one by one. Cells exist only where there are scores. Two
// of them interact by a matrix that depends on their distance alone, or, far apart, by plain sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "../group_lanes.h"
#include "../group_rows.h"
#include "interaction.h"

namespace prefloss::cpu {
namespace {

// A leaf has no more items than this. Where there are many cells, each has few of a node's items, and pairs cost less.
constexpr int kLeaf = 128, kLeafOfManyCells = 384;
constexpr size_t kManyCells = 40;

template <typename Real>
class AllPairs {
 public:
  AllPairs(RankedItems<Real>& items, const GroupOptions<Real>& options, bool statistics, int threads)
      : items_(items), options_(options), statistics_(statistics), threads_(threads) {
    beta_ = static_cast<double>(options.ranked.formula.beta);
    center_ = static_cast<double>(options.ranked.formula.center);
    set(ranked_, options.ranked);
    set(tied_, options.tied);
  }

  // Adds to the items' slopes. Rewards must be finite.
  PairSums run() {
    number_cells();
    grow();
    const double range = keys_.back() - keys_.front();
    ranked_.prepare(interpolation_, range, threads_);
    if (options_.half_ties) tied_.prepare(interpolation_, range, threads_);
    visit_pairs();
    for_nodes(leaves_, [&](TreeNode& leaf) { start(leaf); });
    for (size_t depth = depths_.size(); depth-- > 0;) for_nodes(depths_[depth], [&](TreeNode& node) { gather(node); });
    for (const std::vector<int>& nodes : depths_) for_nodes(nodes, [&](TreeNode& node) { interact(node); });
    for_nodes(leaves_, [&](TreeNode& leaf) { finish(leaf); });
    PairSums total;
    for (const TreeNode& node : nodes_) total.add(node.sums);
    return total;
  }

 private:
  static constexpr int kCount = kPolynomials<Real>;
  using LeafLanes = GroupsInLanes<Real, kLeafOfManyCells>;

  RankedItems<Real>& items_;
  const GroupOptions<Real>& options_;
  bool statistics_;
  int threads_;
  double beta_, center_;
  Relation<Real> ranked_, tied_;
  const Interpolation<kCount> interpolation_{};
  const Series<Real> series_{interpolation_};
  std::vector<double> keys_;  // of the cells: the scores in [2 key, 2 key + 2) are in it
  std::vector<int> cell_;     // of each item
  int leaf_ = kLeaf;
  std::vector<TreeNode> nodes_;
  std::vector<int> leaves_;
  std::vector<std::vector<int>> depths_;  // the nodes that have children

  static void set(Relation<Real>& relation, const PairOptions<Real>& pairs) {
    relation.margin = static_cast<double>(pairs.margin);
    relation.wrong = static_cast<double>(pairs.formula.smoothed(pairs.target).wrong);
  }

  double score(int i) const { return beta_ * static_cast<double>(items_.rewards[static_cast<size_t>(i)]); }
  double key_of(int i) const { return std::floor(score(i) / 2); }
  // Where in its cell an item's score is, from -1 to 1.
  double place(int i) const { return score(i) - 2 * keys_[static_cast<size_t>(cell_[static_cast<size_t>(i)])] - 1; }
  // In the midst of the scores.
  double origin() const { return 2 * keys_[keys_.size() / 2]; }

  // Whether the sums of each item's losses are wanted, of a list of two ranks, which are the root's two children.
  bool by_item() const { return !items_.losses.empty(); }

  TreeNode& node(int n) { return nodes_[static_cast<size_t>(n)]; }

  template <typename Body>
  void for_nodes(const std::vector<int>& nodes, const Body& body) {
    const int64_t count = static_cast<int64_t>(nodes.size()), parts = std::min<int64_t>(count, 64);
    for_chunks(parts, threads_, [&](int64_t part) {
      for (int64_t n = part * count / parts; n < (part + 1) * count / parts; n++)
        body(nodes_[static_cast<size_t>(nodes[static_cast<size_t>(n)])]);
    });
  }

  // Gives each item its cell.
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

  void grow() {
    if (keys_.size() > kManyCells) leaf_ = kLeafOfManyCells;
    nodes_.reserve(static_cast<size_t>(4 * items_.size / leaf_ + 16));
    nodes_.emplace_back();
    nodes_[0].end = items_.size;
    std::vector<int> now{0};
    while (!now.empty()) {
      std::vector<int> parents, next;
      for (const int n : now) {
        const int begin = nodes_[static_cast<size_t>(n)].begin, end = nodes_[static_cast<size_t>(n)].end;
        nodes_[static_cast<size_t>(n)].tied = end <= items_.level_end[static_cast<size_t>(begin)];
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

  // Where a rank begins, as near to the middle as there is. Where all are of one rank: `begin`, or, if such pairs
  // count, the middle.
  int split_of(int begin, int end) const {
    const int middle = begin + (end - begin) / 2, after = items_.level_end[static_cast<size_t>(middle)];
    const int before = items_.level_begin(middle);
    if (before > begin && (after >= end || middle - before <= after - middle)) return before;
    if (after < end) return after;
    return options_.half_ties ? middle : begin;
  }

  // The pairs within the leaves; without statistics several leaves at a time.
  void visit_pairs() {
    std::vector<int> leaves;
    for (const int leaf : leaves_) {
      if (!node(leaf).tied || options_.half_ties) leaves.push_back(leaf);
    }
    const int64_t count = static_cast<int64_t>(leaves.size()), unit = statistics_ ? 1 : kTile,
                  units = (count + unit - 1) / unit, parts = std::min<int64_t>(units, 64);
    for_chunks(parts, threads_, [&](int64_t part) {
      LeafLanes lanes;
      for (int64_t n = part * units / parts * unit; n < std::min(count, (part + 1) * units / parts * unit); n += unit) {
        if (statistics_)
          visit_pairs_of(node(leaves[static_cast<size_t>(n)]));
        else
          visit_pairs_in_lanes(lanes, &leaves[static_cast<size_t>(n)], static_cast<int>(std::min(unit, count - n)));
      }
    });
  }

  void visit_pairs_of(TreeNode& leaf) {
    RankedItems<Real> own;
    own.copy_of(items_, leaf.begin, leaf.end);
    double sums[kGroupSums];
    forward_group(own, options_, false, sums);
    leaf.sums.terms = sums[kTerms];
    if (statistics_) {
      own.losses.assign(by_item() ? static_cast<size_t>(leaf.size()) : 0, 0.0);
      for_ranges(own, options_, [&](const Range& range, const PairOptions<Real>& pairs, bool) {
        leaf.sums.losses += losses_of(own, range, pairs);
      });
    }
    std::copy_n(own.slopes.begin(), leaf.size(), items_.slopes.begin() + leaf.begin);
    std::copy(own.losses.begin(), own.losses.end(), items_.losses.begin() + (by_item() ? leaf.begin : 0));
  }

  void visit_pairs_in_lanes(LeafLanes& lanes, const int* leaves, int count) {
    IntegerLike<Real> levels[kLeafOfManyCells];
    int most = 0;
    for (int lane = 0; lane < count; lane++) most = std::max(most, node(leaves[lane]).size());
    lanes.clear(most);
    for (int lane = 0; lane < count; lane++) {
      const TreeNode& leaf = node(leaves[lane]);
      std::copy(items_.level_end.begin() + leaf.begin, items_.level_end.begin() + leaf.end, levels);
      lanes.put(lane, &items_.rewards[static_cast<size_t>(leaf.begin)], levels, leaf.size());
    }
    lanes.template add_pairs<true>(options_);
    for (int lane = 0; lane < count; lane++) {
      TreeNode& leaf = node(leaves[lane]);
      leaf.sums.terms = lanes.terms.of[lane];
      for (int i = leaf.begin; i < leaf.end; i++)
        items_.slopes[static_cast<size_t>(i)] = lanes.slopes[i - leaf.begin][lane];
    }
  }

  // A leaf's moments.
  void start(TreeNode& leaf) {
    const std::vector<int> places = number_cells_of(leaf);
    leaf.moments.assign(leaf.cells.size() * kCount, 0.0);
    for (int i = leaf.begin; i < leaf.end; i++) {
      const double u = place(i);
      leaf.rewards.add(Powers::of(static_cast<double>(items_.rewards[static_cast<size_t>(i)])));
      leaf.scores.add(Powers::of(score(i) - origin()));
      double polynomials[kCount];
      chebyshev<kCount>(u, polynomials);
      const size_t c = static_cast<size_t>(places[static_cast<size_t>(i - leaf.begin)]);
      double* moments = &leaf.moments[c * kCount];
      for (int k = 0; k < kCount; k++) moments[k] += polynomials[k];
    }
  }

  // Lists the cells of a leaf, and returns the place of each item's among them.
  std::vector<int> number_cells_of(TreeNode& leaf) const {
    std::vector<int> places(cell_.begin() + leaf.begin, cell_.begin() + leaf.end);
    leaf.cells.clear();
    if (keys_.size() <= 8 * places.size()) {
      std::vector<int> place_of(keys_.size(), -1);
      for (const int cell : places) place_of[static_cast<size_t>(cell)] = 0;
      for (size_t cell = 0; cell < place_of.size(); cell++) {
        if (place_of[cell] < 0) continue;
        place_of[cell] = static_cast<int>(leaf.cells.size());
        leaf.cells.push_back(static_cast<int>(cell));
      }
      for (int& cell : places) cell = place_of[static_cast<size_t>(cell)];
      return places;
    }
    leaf.cells = places;
    std::sort(leaf.cells.begin(), leaf.cells.end());
    leaf.cells.erase(std::unique(leaf.cells.begin(), leaf.cells.end()), leaf.cells.end());
    for (int& cell : places)
      cell = static_cast<int>(std::lower_bound(leaf.cells.begin(), leaf.cells.end(), cell) - leaf.cells.begin());
    return places;
  }

  void gather(TreeNode& node) {
    const TreeNode &left = nodes_[static_cast<size_t>(node.left)], &right = nodes_[static_cast<size_t>(node.right)];
    std::set_union(left.cells.begin(), left.cells.end(), right.cells.begin(), right.cells.end(),
                   std::back_inserter(node.cells));
    node.moments.assign(node.cells.size() * kCount, 0.0);
    for (const TreeNode* child : {&left, &right}) {
      node.rewards.add(child->rewards);
      node.scores.add(child->scores);
      for (size_t c = 0, n = 0; c < child->cells.size(); c++) {
        while (node.cells[n] != child->cells[c]) n++;
        const double* its = &child->moments[c * kCount];
        double* moments = &node.moments[n * kCount];
        for (int k = 0; k < kCount; k++) moments[k] += its[k];
      }
    }
  }

  // Passes a node's potentials on to its children, and adds those that its children give to each other.
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
      }
    }
    node.potentials = {};
    node.sums =
        Interaction<Real>{keys_, series_, beta_, center_, by_item()}.run(node.tied ? tied_ : ranked_, left, right);
  }

  void finish(TreeNode& leaf) {
    if (leaf.potentials.empty()) return;
    const std::vector<int> places = number_cells_of(leaf);
    for (int i = leaf.begin; i < leaf.end; i++) {
      const double u = place(i);
      const size_t c = static_cast<size_t>(places[static_cast<size_t>(i - leaf.begin)]);
      double polynomials[kCount], slope = 0;
      chebyshev<kCount>(u, polynomials);
      const double* potential = &leaf.potentials[c * kCount];
      for (int k = 0; k < kCount; k++) slope += potential[k] * polynomials[k];
      items_.slopes[static_cast<size_t>(i)] +=
          beta_ * slope + leaf.constant + leaf.linear * static_cast<double>(items_.rewards[static_cast<size_t>(i)]);
      if (!by_item()) continue;
      double loss = leaf.loss_constant + leaf.loss_linear * (score(i) - origin());
      for (int k = 0; k < kCount; k++) loss += leaf.losses[c * kCount + static_cast<size_t>(k)] * polynomials[k];
      items_.losses[static_cast<size_t>(i)] += loss;
    }
  }
};

}  // namespace
}  // namespace prefloss::cpu
