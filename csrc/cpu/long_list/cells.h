// The cells of scores, and which each item of a list is in. Compiled once per instruction set, so everything here has
// internal linkage.
//
// A cell is as wide in the rewards as a power of two. So an item's cell, and its place in it, are exact whatever the
// rewards are, and two items' distance is as exact as the difference of their rewards.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../group_order.h"
#include "polynomials.h"

namespace prefloss::cpu {
namespace {

// Where cells begin, and where in them a list's items are.
template <typename Real>
class CellGrid {
 public:
  double width = 0;  // of a cell, in scores beta x

  CellGrid(const RankedItems<Real>& items, double beta)
      : items_(items), beta_(std::abs(beta)), sign_(beta < 0 ? -1 : 1) {
    // Where beta is tiny, or 0, all scores are nearly one, whatever the width.
    const int exponent = static_cast<int>(std::clamp(std::floor(std::log2(kWidest<Real> / beta_)), -1021.0, 500.0));
    reward_width_ = std::ldexp(1.0, exponent);
    inverse_ = std::ldexp(1.0, -exponent);
    width = beta_ * reward_width_;
  }

  // Half of the width, as a divisor of places.
  double half() const { return width > 0 ? width / 2 : 1; }

  // The cell with the key k has the scores from width k on.
  double key(int i) const { return std::floor(reward(i) * inverse_); }

  // How far an item's score lies from the midst of the cell with this key, which is its own or any other.
  double score(int i, double from) const {
    const double its = key(i);
    return width * (its - from) + place(i, its);
  }

  // From the midst of its own cell.
  double place(int i, double its_key) const {
    return beta_ * ((reward(i) - reward_width_ * its_key) - reward_width_ / 2);
  }

 protected:
  const RankedItems<Real>& items_;

 private:
  double beta_, sign_, reward_width_, inverse_;

  double reward(int i) const { return sign_ * static_cast<double>(items_.rewards[static_cast<size_t>(i)]); }
};

// The cells that have items.
template <typename Real>
class ListCells : public CellGrid<Real> {
  using Grid = CellGrid<Real>;
  using Grid::items_;

 public:
  using Grid::key;
  std::vector<double> keys;  // of the cells that have items, ascending
  std::vector<int> counts;   // how many
  std::vector<int> cell;     // the number of each item's cell, after `number_items`

  ListCells(const RankedItems<Real>& items, double beta, int threads) : Grid(items, beta), threads_(threads) { list(); }

  double range() const { return keys.back() - keys.front(); }

  // Gives each item the number of its cell.
  void number_items() {
    cell.resize(static_cast<size_t>(items_.size));
    if (is_short()) {
      std::vector<int> number(static_cast<size_t>(range()) + 1);
      for (size_t c = 0; c < keys.size(); c++) number[static_cast<size_t>(keys[c] - keys[0])] = static_cast<int>(c);
      for_items(items_.size, threads_,
                [&](size_t i) { cell[i] = number[static_cast<size_t>(key(static_cast<int>(i)) - keys[0])]; });
      return;
    }
    for_items(items_.size, threads_, [&](size_t i) {
      cell[i] = static_cast<int>(std::lower_bound(keys.begin(), keys.end(), key(static_cast<int>(i))) - keys.begin());
    });
  }

 private:
  int threads_;

  // Whether a table of all cells that there could be is not too long.
  bool is_short() const { return range() < 4.0 * items_.size; }

  void list() {
    const size_t size = static_cast<size_t>(items_.size);
    std::vector<double> all(size);
    for_items(items_.size, threads_, [&](size_t i) { all[i] = key(static_cast<int>(i)); });
    const auto [low, high] = std::minmax_element(all.begin(), all.end());
    keys = {*low, *high};
    if (is_short()) {
      const double first = *low;
      std::vector<int> table(static_cast<size_t>(range()) + 1, 0);
      for (const double its : all) table[static_cast<size_t>(its - first)]++;
      keys.clear();
      for (size_t n = 0; n < table.size(); n++) {
        if (table[n] > 0) add(first + static_cast<double>(n), table[n]);
      }
      return;
    }
    keys.clear();
    std::sort(all.begin(), all.end());
    for (size_t begin = 0, end = 0; begin < size; begin = end) {
      for (end = begin; end < size && all[end] == all[begin];) end++;
      add(all[begin], static_cast<int>(end - begin));
    }
  }

  void add(double its_key, int count) {
    keys.push_back(its_key);
    counts.push_back(count);
  }
};

}  // namespace
}  // namespace prefloss::cpu
