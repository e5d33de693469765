// What is linear in the scores of a list's pairs, and centring: sums over ranks, without any cell. Compiled once per
// instruction set, so everything here has internal linkage.
//
// The tree has softplus(w) and sigma(w) of every pair alone. The loss is softplus(w) - wrong w, and c (a + b)^2.
#pragma once

#include <cmath>

#include "../group_order.h"
#include "../group_visit.h"

namespace prefloss::cpu {
namespace {

// Numbers of some items: how many, their mean, and the squares of what they differ from it by. The sum is kept in two
// parts, so that the mean is right to its last bit however many there are, and whatever cancels.
class RunningMean {
 public:
  double count() const { return count_; }
  double squares() const { return squares_; }

  // x + mean, or x - mean, without what the sum of the two parts would lose.
  double plus(double x) const { return count_ == 0 ? 0 : (x + mean_) + rest_; }
  double minus(double x) const { return count_ == 0 ? 0 : (x - mean_) - rest_; }

  void add(double x) {
    const double before = count_ == 0 ? 0 : minus(x), sum = sum_ + x, part = sum - sum_;
    low_ += (sum_ - (sum - part)) + (x - part);
    sum_ = sum;
    count_++;
    mean_ = sum_ / count_;
    rest_ = (std::fma(-mean_, count_, sum_) + low_) / count_;
    squares_ += before * minus(x);
  }

 private:
  double count_ = 0, sum_ = 0, low_ = 0, mean_ = 0, rest_ = 0, squares_ = 0;
};

struct LinearSums {
  double losses = 0, centring = 0;
};

// Adds to what the tree found: the items' slopes so far are by their scores beta x; they become those by the rewards.
template <typename Real>
class LinearTerms {
 public:
  LinearTerms(RankedItems<Real>& items, const GroupOptions<Real>& options)
      : items_(items),
        beta_(static_cast<double>(options.ranked.formula.beta)),
        center_(static_cast<double>(options.ranked.formula.center)),
        margin_(static_cast<double>(options.ranked.margin)),
        along_(!items.directions.empty()),
        wrong_(along_ ? 0 : static_cast<double>(options.ranked.formula.smoothed(options.ranked.target).wrong)),
        tied_wrong_(along_ ? 0 : static_cast<double>(options.tied.formula.smoothed(options.tied.target).wrong)),
        half_ties_(options.half_ties) {}

  LinearSums run() {
    const size_t size = static_cast<size_t>(items_.size);
    for (size_t i = 0; i < size; i++) items_.slopes[i] *= along_ ? beta_ * beta_ : beta_;
    for (double& each : items_.curvatures) each *= beta_ * beta_;
    LinearSums sums;
    if (wrong_ == 0 && center_ == 0 && !half_ties_) return sums;
    for_levels(true, [&](int begin, int end, const RunningMean& better) { add_better(begin, end, better); });
    for_levels(false, [&](int begin, int end, const RunningMean& worse) {
      add_worse(begin, end, worse, sums);
      if (half_ties_) add_tied(begin, end, sums);
    });
    return sums;
  }

 private:
  RankedItems<Real>& items_;
  double beta_, center_, margin_;
  bool along_;  // whether the slopes are the second derivatives' product with directions: then these are the numbers
  double wrong_, tied_wrong_;
  bool half_ties_;

  double number(int i) const {
    const size_t item = static_cast<size_t>(i);
    return along_ ? items_.directions[item] : static_cast<double>(items_.rewards[item]);
  }
  double& slope(int i) { return items_.slopes[static_cast<size_t>(i)]; }
  bool by_item() const { return !items_.losses.empty(); }

  // Calls body(begin, end, those before) for the items of each rank: best first, or worst first.
  template <typename Body>
  void for_levels(bool best_first, const Body& body) {
    RunningMean others;
    for (int done = 0, count = 0; done < items_.size; done += count) {
      const int begin = best_first ? done : items_.level_begin(items_.size - done - 1);
      const int end = best_first ? items_.level_end[static_cast<size_t>(done)] : items_.size - done;
      body(begin, end, others);
      for (int i = begin; i < end; i++) others.add(number(i));
      count = end - begin;
    }
  }

  // What items get from all better ones, of which an item's w is beta (its reward - the other) + margin.
  void add_better(int begin, int end, const RunningMean& better) {
    for (int i = begin; i < end; i++) {
      slope(i) += -wrong_ * beta_ * better.count() + pull(better, i);
      bend(better, i);
      if (by_item()) items_.losses[static_cast<size_t>(i)] -= wrong_ * sum_of_logits(beta_, better, i);
    }
  }

  void add_worse(int begin, int end, const RunningMean& worse, LinearSums& sums) {
    for (int i = begin; i < end; i++) {
      slope(i) += wrong_ * beta_ * worse.count() + pull(worse, i);
      bend(worse, i);
      const double loss = wrong_ == 0 ? 0 : -wrong_ * sum_of_logits(-beta_, worse, i);
      sums.losses += loss;
      if (by_item()) items_.losses[static_cast<size_t>(i)] += loss;
      if (center_ != 0) sums.centring += squares_of_totals(worse, i);
    }
  }

  // The pairs of one rank, each once: the earlier item is called the better one.
  void add_tied(int begin, int end, LinearSums& sums) {
    RunningMean before;
    for (int i = begin; i < end; i++) {
      slope(i) += tied_wrong_ * beta_ * (end - 1 - i - before.count());
      sums.losses -= tied_wrong_ * beta_ * before.count() * before.minus(number(i));
      if (center_ != 0) sums.centring += squares_of_totals(before, i);
      slope(i) += pull(before, i);
      bend(before, i);
      before.add(number(i));
    }
    if (center_ == 0) return;
    RunningMean after;
    for (int i = end; i-- > begin;) {
      slope(i) += pull(after, i);
      bend(after, i);
      after.add(number(i));
    }
  }

  double sum_of_logits(double beta, const RunningMean& others, int i) const {
    return others.count() * (beta * others.minus(number(i)) + margin_);
  }

  double pull(const RunningMean& others, int i) const {
    return center_ == 0 ? 0 : 2 * center_ * others.count() * others.plus(number(i));
  }

  // Its derivative.
  void bend(const RunningMean& others, int i) {
    if (!items_.curvatures.empty()) items_.curvatures[static_cast<size_t>(i)] += 2 * center_ * others.count();
  }

  // c times the sum of (a + b)^2.
  double squares_of_totals(const RunningMean& others, int i) const {
    const double total = others.plus(number(i));
    return center_ * (others.count() * total * total + others.squares());
  }
};

}  // namespace
}  // namespace prefloss::cpu
