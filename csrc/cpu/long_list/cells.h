// The cells of scores, and which each item of a list is in. Compiled once per instruction set, so everything here has
// internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../group_order.h"
#include "polynomials.h"

namespace prefloss::cpu {
namespace {

// In which cells a list's items are, and where in them.
template <typename Real>
class ItemCells {
 public:
  double width;  // of a cell, in scores beta x

  ItemCells(const RankedItems<Real>& items, double beta)
      : width(CellGrid<Real>(beta).width), items_(items), grid_(beta) {}

  double half() const { return grid_.half(); }
  double key(int i) const { return grid_.key(reward(i)); }

  // How far an item's score lies from the midst of its own cell, and of that with any key.
  double place(int i, double its_key) const { return grid_.place(reward(i), its_key); }
  double score(int i, double from) const { return grid_.score(reward(i), from); }

 protected:
  const RankedItems<Real>& items_;

 private:
  CellGrid<Real> grid_;

  Real reward(int i) const { return items_.rewards[static_cast<size_t>(i)]; }
};

// The cells that have items.
template <typename Real>
class ListCells : public ItemCells<Real> {
  using ItemCells<Real>::items_;

 public:
  using ItemCells<Real>::key;
  std::vector<double> keys;  // of the cells that have items, ascending
  std::vector<int> counts;   // how many
  std::vector<int> cell;     // the number of each item's cell, after `number_items`

  ListCells(const RankedItems<Real>& items, double beta, int threads)
      : ItemCells<Real>(items, beta), threads_(threads) {
    list();
  }

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
