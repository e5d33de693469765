// How the items of two sets are compared. Compiled once per instruction set, so everything here has internal linkage.
#pragma once

#include <vector>

#include "far_apart.h"

namespace prefloss::cpu {
namespace {

// Scores that lie no further apart than this need no series: there are too few cells.
constexpr double kNearby = 16;

// An item of a better set with one of a worse: w = worse - better + margin lies within a cell's width of width times
// their cells' distance + margin. Pairs of cells that are not far apart have a matrix.
template <typename Real>
struct Relation {
  double margin = 0;
  double nearest = 0, furthest = -1;  // distances that have a matrix
  bool has_far = false;               // whether there are others
  std::vector<CellPair<kPolynomials<Real>>> matrices;
  std::vector<double> factors;  // exp(w) between the midsts of such cells
  FarApart above, below;        // with w above 0, and below

  // `least` and `most`: of the distances of two cells.
  void prepare(const Interpolation<kPolynomials<Real>>& interpolation, double least, double most, double width,
               int threads) {
    has_far = width * std::max(-least, most) + std::abs(margin) > kNearby;
    const double reach = has_far ? kSeriesFrom<Real> + width : HUGE_VAL;
    nearest = std::max(least, std::ceil((-reach - margin) / width));
    furthest = std::min(most, std::floor((reach - margin) / width));
    const int64_t count = furthest >= nearest ? static_cast<int64_t>(furthest - nearest) + 1 : 0;
    matrices.resize(static_cast<size_t>(count));
    factors.resize(static_cast<size_t>(count));
    for_chunks(count, threads, [&](int64_t n) {
      const double center = width * (nearest + static_cast<double>(n)) + margin;
      matrices[static_cast<size_t>(n)].set(interpolation, center, width / 2);
      factors[static_cast<size_t>(n)] = std::exp(center);
    });
    if (!has_far) return;
    above = FarApart(furthest, width, margin, kSeriesEnd<Real>);
    below = FarApart(-nearest, width, -margin, kSeriesEnd<Real>);
  }

  bool is_near(double distance) const { return nearest <= distance && distance <= furthest; }
  const CellPair<kPolynomials<Real>>& matrix(double distance) const {
    return matrices[static_cast<size_t>(distance - nearest)];
  }
  double factor(double distance) const { return factors[static_cast<size_t>(distance - nearest)]; }
};

}  // namespace
}  // namespace prefloss::cpu
