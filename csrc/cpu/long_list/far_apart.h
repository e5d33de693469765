// Cells of scores that are far apart: softplus(w) is max(w, 0) and a series in exp(-|w|), so that a sum over all that
// lie further is a few numbers, which move from cell to cell. Compiled once per instruction set, so everything here has
// internal linkage.
#pragma once

#include <cmath>
#include <vector>

#include "polynomials.h"

namespace prefloss::cpu {
namespace {

// From here on exp(-|w|) counts 0. In float32 a sum over as many items as there can be would be rounded to 0 anyway; in
// float64 such a pair gives less than 1e-304.
template <typename Real>
constexpr double kSeriesEnd = sizeof(Real) == sizeof(double) ? 702 : 140;

// Of numbers x: the sums of exp(m x), with m = 1 at place 0.
struct alignas(64) Exponentials {
  double sum[kSeries] = {};

  // Of one number, whose exponential this is.
  static Exponentials of(double exponential) {
    const double square = exponential * exponential;
    const double first[4] = {exponential, square, square * exponential, square * square};
    Exponentials powers;
    for (int m = 0; m < 4; m++) powers.sum[m] = first[m];
    for (int m = 0; m < 4; m++) powers.sum[m + 4] = first[m] * first[3];
    return powers;
  }

  void add(const Exponentials& other) {
#pragma omp simd
    for (int m = 0; m < kSeries; m++) sum[m] += other.sum[m];
  }

  // The products with those of other numbers: the sums over all x + y.
  Exponentials times(const Exponentials& others) const {
    Exponentials products;
#pragma omp simd
    for (int m = 0; m < kSeries; m++) products.sum[m] = sum[m] * others.sum[m];
    return products;
  }

  Exponentials times(double factor) const {
    Exponentials products;
#pragma omp simd
    for (int m = 0; m < kSeries; m++) products.sum[m] = factor * sum[m];
    return products;
  }

  double dot(const double (&factors)[kSeries]) const {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int m = 0; m < kSeries; m++) total += factors[m] * sum[m];
    return total;
  }
};

// log(1 + x), and x / (1 + x) and its derivative by log x, as factors of x^m.
constexpr double kLossTerms[kSeries] = {1, -1 / 2.0, 1 / 3.0, -1 / 4.0, 1 / 5.0, -1 / 6.0, 1 / 7.0, -1 / 8.0};
constexpr double kSlopeTerms[kSeries] = {1, -1, 1, -1, 1, -1, 1, -1};
constexpr double kCurvatureTerms[kSeries] = {1, -2, 3, -4, 5, -6, 7, -8};

// Below these x^m is 0: a processor is slow with the numbers at the end of float64. Where x is so small, x^2 is nothing
// beside it.
constexpr double kLeast[kSeries] = {1e-305, 1e-200, 1e-200, 1e-200, 1e-200, 1e-200, 1e-200, 1e-200};

// exp(-m (step d + offset)) for whole numbers d >= first, with m = 1 at place 0. Most often one of the first few is
// asked for.
class Decays {
 public:
  Decays() = default;
  Decays(double step, double offset, double first, double end)
      : step_(step), offset_(offset), first_(first), end_(end) {
    for (double d = 0; d < kTable; d++) table_.push_back(compute(first + d));
  }

  // Whether anything that counts is left of 1 at that distance.
  bool reach(double distance) const { return step_ * distance + offset_ < end_; }

  Exponentials at(double distance) const {
    const double place = distance - first_;
    return place >= 0 && place < kTable ? table_[static_cast<size_t>(place)] : compute(distance);
  }

 private:
  static constexpr int kTable = 64;
  double step_ = 0, offset_ = 0, first_ = 0, end_ = 0;
  std::vector<Exponentials> table_;

  // Where |w| is asked for, it is positive.
  Exponentials compute(double distance) const {
    Exponentials powers;
    const double by = std::max(step_ * distance + offset_, 0.0);
#pragma omp simd
    for (int m = 0; m < kSeries; m++) {
      const double power = exp_negative((m + 1) * by).value;
      powers.sum[m] = power < kLeast[m] ? 0 : power;
    }
    return powers;
  }
};

// Of numbers x: how many, and their sum.
struct Count {
  double count = 0, sum = 0;

  void add(const Count& other) {
    count += other.count;
    sum += other.sum;
  }

  // Of x + by.
  Count shifted(double by) const { return {count, sum + by * count}; }
};

// The coefficients over T_k(t) of exp(m half t), and of the terms that x / (1 + x) is the sum of, where x = exp(half
// t). Each for t, and turned, for -t.
template <typename Real>
struct Series {
  static constexpr int kCount = kPolynomials<Real>;
  double exponential[2][kCount][kSeries] = {}, slope[2][kSeries][kCount];

  Series(const Interpolation<kCount>& interpolation, double half) {
    for (int m = 1; m <= kSeries; m++) {
      for (const bool turned : {false, true}) {
        for (int n = 0; n < kCount; n++) {
          const double u = half * (turned ? -interpolation.nodes[n] : interpolation.nodes[n]), e = std::exp(m * u);
          for (int k = 0; k < kCount; k++) exponential[turned][k][m - 1] += interpolation.transform[k][n] * e;
        }
        for (int k = 0; k < kCount; k++) slope[turned][m - 1][k] = kSlopeTerms[m - 1] * exponential[turned][k][m - 1];
      }
    }
  }

  // Of the items in a cell, from its moments.
  Exponentials of(const double* moments, bool turned) const {
    Exponentials sums;
    add_product(exponential[turned], moments, sums.sum);
    return sums;
  }

  // The losses' part log(1 + exp(-|w|)) of an item at t, or, turned, at -t, over T_k(t).
  void add_losses(const Exponentials& others, bool turned, double* losses) const {
    for (int m = 0; m < kSeries; m++) {
      for (int k = 0; k < kCount; k++) losses[k] += exponential[turned][k][m] * kLossTerms[m] * others.sum[m];
    }
  }
};

// The pairs of cells whose distance is greater than `near`, and what |w| is there: width times distance + margin,
// between their midsts.
struct FarApart {
  double near = 0, width = 0, margin = 0;
  Decays steps, entries;  // from cell to cell; into what lies beyond

  FarApart() = default;
  FarApart(double from, double cell_width, double its_margin, double end)
      : near(from),
        width(cell_width),
        margin(its_margin),
        steps(width, 0, 0, end),
        entries(width, margin, near + 1, end) {}
};

// Of |w|, where an item lies in the midst of its cell and the others in cells beyond those near it.
struct Beyond {
  Count large;            // of |w|
  Exponentials small;     // of -|w|
  Exponentials weighted;  // the same times the items' directions, where they are wanted

  // As many cells further.
  void move(double cells, const FarApart& far, bool has_directions) {
    large = large.shifted(far.width * cells);
    if (small.sum[0] == 0) return;
    if (!far.steps.reach(cells)) {
      small = weighted = {};
      return;
    }
    const Exponentials decay = far.steps.at(cells);
    small = small.times(decay);
    if (has_directions) weighted = weighted.times(decay);
#pragma omp simd
    for (int m = 0; m < kSeries; m++) {
      const bool gone = small.sum[m] < kLeast[m];
      small.sum[m] = gone ? 0 : small.sum[m];
      weighted.sum[m] = gone ? 0 : weighted.sum[m];
    }
  }
};

// Calls with each cell of a set, and what lies beyond those near it: upwards, or downwards. A set says how many cells
// it has, the key of each, and `exponentials(n, turned)`, `weighted(n, turned)` and `places(n)`: the sums over a cell's
// items of exp(m u), of that times their directions, where it `has_directions`, and of u.
template <typename Cells, typename Body>
void for_beyond(const Cells& receivers, const Cells& sources, bool up, const FarApart& far, const Body& body) {
  Beyond beyond;
  const size_t count = receivers.size(), source_count = sources.size();
  double before = 0;
  for (size_t n = 0, s = 0; n < count; n++) {
    const size_t c = up ? count - 1 - n : n;
    const double here = up ? -receivers.key(c) : receivers.key(c);
    if (beyond.large.count > 0) beyond.move(here - before, far, sources.has_directions());
    before = here;
    for (; s < source_count; s++) {
      const size_t source = up ? source_count - 1 - s : s;
      const double distance = here - (up ? -sources.key(source) : sources.key(source));
      if (distance <= far.near) break;
      Count places = sources.places(source);
      if (!up) places.sum = -places.sum;
      beyond.large.add(places.shifted(far.width * distance + far.margin));
      if (!far.entries.reach(distance)) continue;
      const Exponentials decay = far.entries.at(distance);
      beyond.small.add(sources.exponentials(source, up).times(decay));
      if (sources.has_directions()) beyond.weighted.add(sources.weighted(source, up).times(decay));
    }
    if (beyond.large.count > 0) body(c, beyond);
  }
}

}  // namespace
}  // namespace prefloss::cpu
