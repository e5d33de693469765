// A list's items in the order of their scores, by cells; those of one cell are in the order of their ranks. Compiled
// once per instruction set, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cells.h"

namespace prefloss::cpu {
namespace {

// The items [begin, end) of the order have this cell.
struct ScoreCell {
  double key;
  int begin, end;
  int lone = -1;     // the place of its first item among those that meet one by one, if they do
  int moments = -1;  // its place among the cells that have moments, if it has them

  int size() const { return end - begin; }
  bool is_dense() const { return lone < 0; }
};

template <typename Real>
class ScoreList {
  // Cells of so many items are dense: they have moments.
  static constexpr int kDense = 12;

 public:
  std::vector<int> order;      // the items
  std::vector<double> places;  // in their cells
  std::vector<ScoreCell> cells;
  int lone = 0, with_moments = 0;  // how many items meet one by one; cells that have moments

  ScoreList(const ItemCells<Real>& grid, int size, int threads)
      : order(static_cast<size_t>(size)), places(order.size()) {
    std::vector<double> keys(order.size());
    put_in_order(grid, threads, keys);
    for_items(size, threads, [&](size_t n) {
      keys[n] = grid.key(order[n]);
      places[n] = grid.place(order[n], keys[n]);
    });
    for (int begin = 0, end = 0; begin < size; begin = end) {
      const double key = keys[static_cast<size_t>(begin)];
      for (end = begin; end < size && keys[static_cast<size_t>(end)] == key;) end++;
      cells.push_back({key, begin, end});
      if (end - begin >= kDense) continue;
      cells.back().lone = lone;
      lone += end - begin;
    }
  }

  double range() const { return cells.back().key - cells.front().key; }

  // Gives a place for its moments to each dense cell, and to those no further than `near` from one.
  void number_moments(double near) {
    std::vector<bool> has(cells.size());
    for (const bool up : {true, false}) {
      double dense = up ? -HUGE_VAL : HUGE_VAL;
      for (size_t n = 0; n < cells.size(); n++) {
        const size_t c = up ? n : cells.size() - 1 - n;
        if (cells[c].is_dense()) dense = cells[c].key;
        if (std::abs(cells[c].key - dense) <= near) has[c] = true;
      }
    }
    for (size_t c = 0; c < cells.size(); c++) cells[c].moments = has[c] ? with_moments++ : -1;
  }

  // Parts of the list that threads share, whatever their number is.
  int parts() const { return static_cast<int>((order.size() + kPart - 1) / kPart); }

  // Calls body(cell, begin, end) for the items of each cell in a part.
  template <typename Body>
  void for_cells_in(int part, const Body& body) const {
    const int begin = part * kPart, end = std::min(begin + kPart, static_cast<int>(order.size()));
    auto cell = std::upper_bound(cells.begin(), cells.end(), begin,
                                 [](int item, const ScoreCell& its) { return item < its.end; });
    for (; cell != cells.end() && cell->begin < end; ++cell)
      body(*cell, std::max(cell->begin, begin), std::min(cell->end, end));
  }

 private:
  static constexpr int kPart = 8192;

  // `keys` is for work.
  void put_in_order(const ItemCells<Real>& grid, int threads, std::vector<double>& keys) {
    const int size = static_cast<int>(order.size());
    for_items(size, threads, [&](size_t i) { keys[i] = grid.key(static_cast<int>(i)); });
    const auto [low, high] = std::minmax_element(keys.begin(), keys.end());
    const double first = *low, span = *high - *low;
    std::vector<int64_t> level(order.size());
    // Whole numbers from 0, or numbers in the same order.
    for_items(size, threads,
              [&](size_t i) { level[i] = span < 0x1p52 ? static_cast<int64_t>(keys[i] - first) : order_of(keys[i]); });
    sort(level.data(), Ranks<int64_t>(level.data(), size), order);
  }
};

}  // namespace
}  // namespace prefloss::cpu
