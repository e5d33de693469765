// A large group: its pairs in linear time, whatever the rewards are, and what PairStats wants to know of them. Compiled
// once per instruction set.
#include <algorithm>
#include <limits>
#include <vector>

#include "all_pairs.h"
#include "concordance.h"

namespace prefloss::cpu {
namespace {

// Rewards that are not finite have no cell. What a pair with one has does not depend on a finite reward.
enum RewardClass : int { kFinite, kInfinite, kNegativeInfinite, kNotANumber, kClasses };

template <typename Real>
RewardClass class_of(Real reward) {
  if (reward - reward == 0) return kFinite;
  return reward != reward ? kNotANumber : reward > 0 ? kInfinite : kNegativeInfinite;
}

// So many times a value, which need not be finite.
template <typename Value>
double times(double count, Value value) {
  return count == 0 ? 0.0 : count * static_cast<double>(value);
}

// What two rewards of given classes have as a pair.
template <typename Real>
struct ClassPair {
  PairGradient<Real> gradient{};
  Real term = 0, loss = 0, difference = 0;

  void set(const PairOptions<Real>& options, int chosen, int rejected) {
    constexpr Real kExamples[] = {Real(0), std::numeric_limits<Real>::infinity(),
                                  -std::numeric_limits<Real>::infinity(), std::numeric_limits<Real>::quiet_NaN()};
    const Real a = kExamples[chosen], b = kExamples[rejected];
    gradient = options.formula.gradient(a, b, options.margin, Real(1), options.target, Real(1));
    loss = options.formula.loss(a, b, options.margin, options.target);
    term = options.formula.centered(loss, a, b);
    difference = a - b;
  }

  void add_to(double* sums, double count, bool tied) const {
    const double l = static_cast<double>(loss), d = static_cast<double>(difference);
    sums[kTerms] += times(count, term);
    sums[kPairLoss] += times(count, l);
    sums[kPairLossSquared] += times(count, l * l);
    if (!tied) sums[kPairDifference] += times(count, d);
    sums[kPairDifferenceSquared] += times(count, d * d);
  }
};

// Adds all pairs with a reward that is not finite to the slopes and the sums.
template <typename Real>
void add_not_finite(RankedItems<Real>& items, const GroupOptions<Real>& options, double* sums) {
  ClassPair<Real> ranked[kClasses][kClasses], tied[kClasses][kClasses];
  double before[kClasses] = {}, after[kClasses] = {};
  for (int a = 0; a < kClasses; a++) {
    for (int b = 0; b < kClasses; b++) {
      if (a == kFinite && b == kFinite) continue;  // nothing
      ranked[a][b].set(options.ranked, a, b);
      if (options.half_ties) tied[a][b].set(options.tied, a, b);
    }
  }
  std::vector<RewardClass> classes(static_cast<size_t>(items.size));
  for (size_t i = 0; i < classes.size(); i++) after[classes[i] = class_of(items.rewards[i])]++;
  for (size_t begin = 0, end = 0; begin < classes.size(); begin = end) {
    end = static_cast<size_t>(items.level_end[begin]);
    double level[kClasses] = {};
    for (size_t i = begin; i < end; i++) level[classes[i]]++;
    for (int c = 0; c < kClasses; c++) after[c] -= level[c];
    double slopes[kClasses] = {};  // of an item of each class
    for (int a = 0; a < kClasses; a++) {
      for (int b = 0; b < kClasses; b++) {
        slopes[a] += times(after[b], ranked[a][b].gradient.chosen) + times(before[b], ranked[b][a].gradient.rejected);
        ranked[a][b].add_to(sums, level[a] * after[b], false);
        const double others = a == b ? std::max(level[b] - 1, 0.0) : level[b];
        slopes[a] += times(others, tied[a][b].gradient.chosen);
        tied[a][b].add_to(sums, level[a] * others / 2, true);
      }
    }
    for (size_t i = begin; i < end; i++) items.slopes[i] += slopes[classes[i]];
    for (int c = 0; c < kClasses; c++) before[c] += level[c];
  }
}

// The sums of PairStats that come from rank to rank: of the differences of finite rewards, about `origin`, and of
// chosen and rejected rewards.
template <typename Real>
void add_rank_sums(const RankedItems<Real>& items, double origin, bool half_ties, double* sums) {
  Powers behind;
  for (int end = items.size, begin = 0; end > 0; end = begin) {
    begin = items.level_begin(end - 1);
    const double better = begin, worse = items.size - end, others = half_ties ? 0.5 * (end - begin - 1) : 0.0;
    Powers level;
    for (int i = begin; i < end; i++) {
      const double x = static_cast<double>(items.rewards[static_cast<size_t>(i)]);
      if (class_of(x) == kFinite) level.add(Powers::of(x - origin));
      sums[kPairChosen] += times(worse + others, x);
      sums[kPairChosenSquared] += times(worse + others, x * x);
      sums[kPairRejected] += times(better + others, x);
      sums[kPairRejectedSquared] += times(better + others, x * x);
    }
    sums[kPairDifference] += behind.count * level.first - level.count * behind.first;
    sums[kPairDifferenceSquared] += squares_of_differences(level, behind);
    if (half_ties) sums[kPairDifferenceSquared] += level.count * level.second - level.first * level.first;
    behind.add(level);
  }
}

template <typename Real>
void add_concordance(const RankedItems<Real>& items, bool half_ties, double* sums, int threads) {
  std::vector<Real> rewards;
  std::vector<size_t> ends;
  double same_rank = 0;
  for (int i = 0; i < items.size; i++) {
    const Real reward = items.rewards[static_cast<size_t>(i)];
    if (reward == reward) rewards.push_back(reward);
    if (i + 1 < items.level_end[static_cast<size_t>(i)]) continue;
    const double count = static_cast<double>(rewards.size() - (ends.empty() ? 0 : ends.back()));
    same_rank += count * (count - 1) / 2;
    ends.push_back(rewards.size());
  }
  const Concordance pairs = concordance(rewards, ends, threads);
  sums[kPairsCorrect] = pairs.correct + (half_ties ? 0.5 * (same_rank - pairs.equal_in_ranks) : 0);
  sums[kPairsTied] = pairs.equal + (half_ties ? pairs.equal_in_ranks : 0);
}

template <typename Real>
void forward_large_group(RankedItems<Real>& items, const GroupOptions<Real>& options, bool statistics, double* sums,
                         int threads) {
  std::fill(sums, sums + kGroupSums, 0.0);
  std::vector<int> finite;
  for (int i = 0; i < items.size; i++) {
    const int end = items.level_end[static_cast<size_t>(i)];
    sums[kPairs] += items.size - end + (options.half_ties ? end - i - 1 : 0);
    if (class_of(items.rewards[static_cast<size_t>(i)]) == kFinite) finite.push_back(i);
  }
  const auto add_finite = [&](RankedItems<Real>& those) {
    if (those.size == 0) return;
    const PairSums pairs = AllPairs<Real>(those, options, statistics, threads).run();
    sums[kTerms] += pairs.terms;
    sums[kPairLoss] += pairs.losses;
    sums[kPairLossSquared] += pairs.squares;
  };
  if (finite.size() == static_cast<size_t>(items.size)) {
    add_finite(items);
  } else {
    RankedItems<Real> those;
    those.copy_of(items, finite);
    add_finite(those);
    for (size_t i = 0; i < finite.size(); i++) items.slopes[static_cast<size_t>(finite[i])] = those.slopes[i];
    add_not_finite(items, options, sums);
  }
  if (!statistics || sums[kPairs] == 0) return;
  const double origin = finite.empty() ? 0 : static_cast<double>(items.rewards[static_cast<size_t>(finite[0])]);
  add_rank_sums(items, origin, options.half_ties, sums);
  add_concordance(items, options.half_ties, sums, threads);
  add_extremes(items, sums);
}

}  // namespace

namespace PREFLOSS_CPU_PATH {

void forward_long_list(RankedItems<float>& items, const Groups& groups, bool statistics, double* sums, int threads) {
  forward_large_group(items, GroupOptions<float>(groups), statistics, sums, threads);
}

void forward_long_list(RankedItems<double>& items, const Groups& groups, bool statistics, double* sums, int threads) {
  forward_large_group(items, GroupOptions<double>(groups), statistics, sums, threads);
}

}  // namespace PREFLOSS_CPU_PATH
}  // namespace prefloss::cpu
