// A large group: its pairs in linear time, whatever the rewards are, and what PairStats wants to know of them. Compiled
// once per instruction set.
#include <algorithm>
#include <limits>
#include <vector>

#include "../group_rows.h"
#include "all_pairs.h"
#include "concordance.h"
#include "less_ties.h"
#include "linear_terms.h"

namespace prefloss::cpu {
namespace {

// Rewards that are not finite have no cell. The loss of a pair with one is the same whatever a finite reward is.
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

// Sums over pairs: of the terms (loss + c (a + b)^2), and of the losses.
struct PairSums {
  double terms = 0, losses = 0;
};

// The sums of a pair of rewards of two classes.
template <typename Real>
struct ClassPair {
  PairGradient<Real> gradient{};
  Real term = 0, loss = 0, difference = 0;

  void set(const PairOptions<Real>& options, int chosen, int rejected) {
    constexpr Real kExamples[] = {Real(0), std::numeric_limits<Real>::infinity(),
                                  -std::numeric_limits<Real>::infinity(), std::numeric_limits<Real>::quiet_NaN()};
    const Real a = kExamples[chosen], b = kExamples[rejected];
    gradient = options.formula.gradient(a, b, options.margin, Real(1), options.target, Scale<Real>());
    loss = options.formula.loss(a, b, options.margin, options.target);
    term = options.formula.centered(loss, a, b);
    difference = a - b;
  }

  // Numbers that are not finite differ from their mean by NaN, and a tied pair's two orders do not add up to 0.
  void add_to(PairSums& pairs, double* sums, double count, bool tied) const {
    const double l = static_cast<double>(loss), d = static_cast<double>(difference);
    pairs.terms += times(count, term);
    pairs.losses += times(count, l);
    sums[kPairDifference] += times(count, tied ? d - d : d);
    sums[kPairDifferenceSquares] += times(count, tied ? d * d : d - d);
  }
};

// Adds all pairs with a reward that is not finite to the slopes and the sums.
template <typename Real>
void add_not_finite(RankedItems<Real>& items, const GroupOptions<Real>& options, PairSums& pairs, double* sums) {
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
    double slopes[kClasses] = {}, losses[kClasses] = {};  // of an item of each class
    for (int a = 0; a < kClasses; a++) {
      for (int b = 0; b < kClasses; b++) {
        slopes[a] += times(after[b], ranked[a][b].gradient.chosen) + times(before[b], ranked[b][a].gradient.rejected);
        losses[a] += times(after[b], ranked[a][b].loss) + times(before[b], ranked[b][a].loss);
        ranked[a][b].add_to(pairs, sums, level[a] * after[b], false);
        const double others = a == b ? std::max(level[b] - 1, 0.0) : level[b];
        slopes[a] += times(others, tied[a][b].gradient.chosen);
        tied[a][b].add_to(pairs, sums, level[a] * others / 2, true);
      }
    }
    for (size_t i = begin; i < end; i++) items.slopes[i] += slopes[classes[i]];
    for (size_t i = begin; i < end && !items.losses.empty(); i++) items.losses[i] += losses[classes[i]];
    for (int c = 0; c < kClasses; c++) before[c] += level[c];
  }
}

// Calls body(begin, end, better, worse) for the items [begin, end) of each rank, worst first: so many items of its
// pairs are better than one of these, and so many worse. Half of the others of the same rank are each, where such pairs
// count.
template <typename Real, typename Body>
void for_ranks(const RankedItems<Real>& items, bool half_ties, const Body& body) {
  for (int end = items.size, begin = 0; end > 0; end = begin) {
    begin = items.level_begin(end - 1);
    const double others = half_ties ? 0.5 * (end - begin - 1) : 0.0;
    body(begin, end, begin + others, items.size - end + others);
  }
}

// Of numbers x: how many, and the sums of x and x^2.
struct Powers {
  double count = 0, first = 0, second = 0;

  static Powers of(double x) { return {1, x, x * x}; }

  void add(const Powers& other) {
    count += other.count;
    first += other.first;
    second += other.second;
  }
};

// The sum of (x - y)^2 over all x and y.
double squares_of_differences(const Powers& x, const Powers& y) {
  return y.count * x.second - 2 * y.first * x.first + x.count * y.second;
}

// The sums of PairStats that come from rank to rank: of the differences of finite rewards, and of chosen and rejected
// rewards. First the means; then the squares, of rewards taken from the means, by which a difference's are O(items):
// a - b less its mean is (a - mean a) - (b - mean b).
template <typename Real>
void add_rank_sums(const RankedItems<Real>& items, bool half_ties, double* sums) {
  const auto reward = [&](int i) { return static_cast<double>(items.rewards[static_cast<size_t>(i)]); };
  const auto is_finite = [&](int i) { return class_of(reward(i)) == kFinite; };
  double chosen = 0, rejected = 0, above = 0, below = 0,
         ranked = 0;  // the middle three of finite pairs of different rank
  double finite_behind = 0, sum_behind = 0;
  for_ranks(items, half_ties, [&](int begin, int end, double better, double worse) {
    double count = 0, sum = 0;
    for (int i = begin; i < end; i++) {
      chosen += times(worse, reward(i));
      rejected += times(better, reward(i));
      if (is_finite(i)) count++, sum += reward(i);
    }
    above += sum * finite_behind;
    below += count * sum_behind;
    ranked += count * finite_behind;
    finite_behind += count;
    sum_behind += sum;
  });
  const double pairs = sums[kPairs], mean_chosen = chosen / pairs, mean_rejected = rejected / pairs;
  const double mean_above = ranked == 0 ? 0 : above / ranked, mean_below = ranked == 0 ? 0 : below / ranked;
  double squares = 0, first = 0, tied_squares = 0, tied = 0;
  Powers behind;
  for_ranks(items, half_ties, [&](int begin, int end, double better, double worse) {
    Powers its_above, its_below;
    double count = 0, sum = 0, spread = 0;
    for (int i = begin; i < end; i++) {
      const double from_chosen = reward(i) - mean_chosen, from_rejected = reward(i) - mean_rejected;
      sums[kPairChosenSquares] += times(worse, from_chosen * from_chosen);
      sums[kPairRejectedSquares] += times(better, from_rejected * from_rejected);
      if (!is_finite(i)) continue;
      its_above.add(Powers::of(reward(i) - mean_above));
      its_below.add(Powers::of(reward(i) - mean_below));
      count++, sum += reward(i);
    }
    squares += squares_of_differences(its_above, behind);
    first += behind.count * its_above.first - its_above.count * behind.first;
    behind.add(its_below);
    if (!half_ties || count == 0) return;
    for (int i = begin; i < end; i++) {
      if (is_finite(i)) spread += (reward(i) - sum / count) * (reward(i) - sum / count);
    }
    tied += count * (count - 1) / 2;
    tied_squares += count * spread;
  });
  sums[kPairChosen] += chosen;
  sums[kPairRejected] += rejected;
  Moments differences{ranked, first + (mean_above - mean_below) * ranked, 0};
  differences.squares = ranked == 0 ? 0 : std::max(squares - first * (first / ranked), 0.0);
  differences.add({tied, 0, tied_squares});  // the two orders of a tied pair add up to 0
  sums[kPairDifference] += differences.sum;
  sums[kPairDifferenceSquares] += differences.squares;
}

template <typename Real>
void add_concordance(const RankedItems<Real>& items, bool half_ties, double* sums, int threads) {
  std::vector<Real> rewards;
  std::vector<size_t> ends;
  int64_t same_rank = 0;
  for (int i = 0; i < items.size; i++) {
    const Real reward = items.rewards[static_cast<size_t>(i)];
    if (reward == reward) rewards.push_back(reward);
    if (i + 1 < items.level_end[static_cast<size_t>(i)]) continue;
    const int64_t count = static_cast<int64_t>(rewards.size() - (ends.empty() ? 0 : ends.back()));
    same_rank += count * (count - 1) / 2;
    ends.push_back(rewards.size());
  }
  const Concordance pairs = concordance(rewards, ends, threads);
  sums[kPairsCorrect] = static_cast<double>(pairs.correct) +
                        (half_ties ? 0.5 * static_cast<double>(same_rank - pairs.equal_in_ranks) : 0);
  sums[kPairsTied] = static_cast<double>(pairs.equal + (half_ties ? pairs.equal_in_ranks : 0));
}

// The sum of softplus(w) over all pairs of finite rewards, whose slopes are added to the items'.
template <typename Real>
double pairs_of(RankedItems<Real>& items, const GroupOptions<Real>& options, int threads) {
  if (are_met_by_score(items, options)) return PairsByScore<Real>(items, options, threads).run();
  if (PairsLessTies<Real>::takes(items, options)) {
    const double losses = PairsLessTies<Real>(items, options, threads).run();
    if (losses >= 0) return losses;
  }
  return AllPairs<Real>(items, options, threads).run();
}

template <typename Real>
void forward_large_group(RankedItems<Real>& items, const GroupOptions<Real>& options, bool statistics, double* sums,
                         int threads) {
  std::fill(sums, sums + kGroupSums, 0.0);
  int64_t count = 0;
  for (int i = 0; i < items.size; i++) {
    const int end = items.level_end[static_cast<size_t>(i)];
    count += items.size - end + (options.half_ties ? end - i - 1 : 0);
  }
  sums[kPairs] = static_cast<double>(count);
  PairSums pairs;
  const auto add_finite = [&](RankedItems<Real>& those) {
    if (those.size == 0) return;
    const double softplus = pairs_of(those, options, threads);
    const LinearSums linear = LinearTerms<Real>(those, options).run();
    pairs.losses += softplus + linear.losses;
    pairs.terms += softplus + linear.losses + linear.centring;
  };
  if (are_finite(items.rewards.data(), items.size)) {
    add_finite(items);
  } else {
    std::vector<int> finite;
    for (int i = 0; i < items.size; i++) {
      if (class_of(items.rewards[static_cast<size_t>(i)]) == kFinite) finite.push_back(i);
    }
    RankedItems<Real> those;
    those.copy_of(items, finite);
    those.losses.assign(items.losses.empty() ? 0 : finite.size(), 0.0);
    add_finite(those);
    for (size_t i = 0; i < finite.size(); i++) items.slopes[static_cast<size_t>(finite[i])] = those.slopes[i];
    for (size_t i = 0; i < those.losses.size(); i++) items.losses[static_cast<size_t>(finite[i])] = those.losses[i];
    add_not_finite(items, options, pairs, sums);
  }
  sums[kTerms] = pairs.terms;
  if (!statistics || sums[kPairs] == 0) return;
  sums[kPairLoss] = pairs.losses;
  add_rank_sums(items, options.half_ties, sums);
  add_concordance(items, options.half_ties, sums, threads);
  add_extremes(items, sums);
}

}  // namespace

namespace PREFLOSS_CPU_PATH {

bool forward_leaf(RankedItems<float>& items, const Groups& groups, double& terms) {
  const GroupOptions<float> options(groups);
  const double beta = static_cast<double>(options.ranked.formula.beta);
  Leaf leaf;
  if (items.size > kLargestLeaf || !options.is_softplus() ||
      !leaf.load(items, {beta, static_cast<double>(options.ranked.margin), false}))
    return false;
  ItemSums sums;
  sums.slopes = items.slopes.data();
  if (!items.curvatures.empty()) sums.curvatures = items.curvatures.data();
  terms = leaf.run(sums);
  for (double& slope : items.slopes) slope *= beta;
  for (double& curvature : items.curvatures) curvature *= beta * beta;
  return true;
}

void forward_long_list(RankedItems<float>& items, const Groups& groups, bool statistics, double* sums, int threads) {
  forward_large_group(items, GroupOptions<float>(groups), statistics, sums, threads);
}

void forward_long_list(RankedItems<double>& items, const Groups& groups, bool statistics, double* sums, int threads) {
  forward_large_group(items, GroupOptions<double>(groups), statistics, sums, threads);
}

}  // namespace PREFLOSS_CPU_PATH
}  // namespace prefloss::cpu
