// The statistics of an evaluation, and their sums: a block of pairs at a time, so that what is of a pair stays in the
// cache. Compiled once per instruction set.
#include "../evaluation.h"

#include <algorithm>
#include <cmath>

#include "../pair_math.h"
#include "blocks.h"
#include "instruction_set.h"

namespace prefloss::cpu {
namespace {

constexpr int kPairsAtOnce = 256;
constexpr int kMostPowers = 6;

using Values = double[kPairsAtOnce];

// What each pair of a block has.
struct Block {
  alignas(64) Values statistics[kMostStatistics], distance, won;
  alignas(64) Values labelled;  // 1, or 0 where the target is NaN: not known
};

// A column of a block, or a number in the place of one.
struct BlockColumn {
  const Column& column;
  alignas(64) Values values;

  BlockColumn(const Column& given, double number) : column(given) {
    if (!column) std::fill(values, values + kPairsAtOnce, number);
  }

  const double* load(int64_t begin, int count) {
    if (is_in_place<double>(column)) return column.entry<double>(0, begin);
    if (column) read_entries(column, 0, begin, count, values);
    return values;
  }
};

// How far the order of the rewards agrees with the target.
inline double agreement(double difference, double target) {
  return difference > 0 ? target : difference < 0 ? 1 - target : target - target;
}

class PairStatistics {
 public:
  explicit PairStatistics(const EvaluatedPairs& given)
      : given_(given),
        formula_(given.pairs.options, static_cast<bool>(given.pairs.target)),
        judged_(given.pairs.options, true),
        chosen_(given.pairs.chosen, 0),
        rejected_(given.pairs.rejected, 0),
        margin_(given.pairs.margin, given.pairs.options.margin),
        target_(given.pairs.target, given.pairs.options.target),
        baseline_chosen_(given.baseline_chosen, 0),
        baseline_rejected_(given.baseline_rejected, 0),
        judge_(given.judge, 0) {}

  void compute(int64_t begin, int count, Block& block) {
    const double *a = chosen_.load(begin, count), *b = rejected_.load(begin, count), *m = margin_.load(begin, count),
                 *t = target_.load(begin, count);
    double* const loss = block.statistics[kLossOfPair];
    double* const correct = block.statistics[kCorrectOfPair];
    losses(formula_, a, b, m, t, count, loss);
    const double beta = formula_.beta;
#pragma omp simd
    for (int i = 0; i < count; i++) {
      const double difference = a[i] - b[i], z = fused(beta, difference, -m[i]), distance = absolute(z);
      const double e = exp_negative(distance).value, root = std::sqrt(e), square = e * e;
      const double won = z > 0 ? t[i] : 1 - t[i];
      correct[i] = agreement(difference, t[i]);
      block.statistics[kTiedOfPair][i] = a[i] == b[i] ? 1.0 : 0.0;
      block.statistics[kMarginOfPair][i] = difference;
      const double likely = 1 / (1 + e),
                   miss = won - likely;  // the model's probability that the one of greater reward is better
      block.statistics[kBrier][i] = miss * miss;
      const double probabilities[] = {1 / (1 + std::sqrt(root)), 1 / (1 + root), likely, 1 / (1 + square),
                                      1 / (1 + square * square)};
      for (int k = 0; k < 5; k++) {
        const double gap = probabilities[k] - won;
        block.statistics[kScores + k][i] = gap == 0 ? 0.0 : distance * gap;  // not inf * 0
      }
      block.distance[i] = distance;
      block.won[i] = z == 0 ? 0.5 : won;
      block.labelled[i] = t[i] == t[i] ? 1.0 : 0.0;
    }
    int next = kOfPair;
    if (given_.baseline_chosen) {
      const double *its_a = baseline_chosen_.load(begin, count), *its_b = baseline_rejected_.load(begin, count);
      double* const its_loss = block.statistics[next];
      double* const its_correct = block.statistics[next + 1];
      losses(formula_, its_a, its_b, m, t, count, its_loss);
      for (int i = 0; i < count; i++) {
        its_correct[i] = agreement(its_a[i] - its_b[i], t[i]);
        block.statistics[next + 2][i] = loss[i] - its_loss[i];
        block.statistics[next + 3][i] = correct[i] - its_correct[i];
      }
      next += kOfBaseline;
    }
    if (given_.judge) {
      double* const its_loss = block.statistics[next];
      losses(judged_, a, b, m, judge_.load(begin, count), count, its_loss);
      for (int i = 0; i < count; i++) block.statistics[next + 1][i] = loss[i] - its_loss[i];
    }
  }

 private:
  const EvaluatedPairs& given_;
  Formula<double> formula_, judged_;
  BlockColumn chosen_, rejected_, margin_, target_, baseline_chosen_, baseline_rejected_, judge_;

  static void losses(const Formula<double>& formula, const double* a, const double* b, const double* m, const double* t,
                     int count, double* loss) {
#pragma omp simd
    for (int i = 0; i < count; i++) loss[i] = formula.loss(a[i], b[i], m[i], t[i]);
  }
};

// A block's weights and their powers, and a statistic about its shift with its square.
struct Factors {
  alignas(64) Values powers[kMostPowers + 1], value, square;
};

// Calls body(entry) with what a moment is the sum of: entry(i) for each pair of the block.
template <typename Body>
void with_entry(const Moment& moment, bool weighted, const Factors& factors, const Body& body) {
  const double *w = factors.powers[moment.weight_power], *y = factors.value, *y2 = factors.square;
  if (moment.statistic < 0) return body([=](int i) { return w[i]; });
  if (moment.power == 1) return weighted ? body([=](int i) { return w[i] * y[i]; }) : body([=](int i) { return y[i]; });
  if (moment.power == 2)
    return weighted ? body([=](int i) { return w[i] * y2[i]; }) : body([=](int i) { return y2[i]; });
  return weighted ? body([=](int i) { return w[i] * (y2[i] * y[i]); }) : body([=](int i) { return y2[i] * y[i]; });
}

void add_to_bins(const Block& block, const double* weight, const StatisticSums& sums, int64_t begin, int count) {
  for (int i = 0; i < count; i++) {
    if (block.labelled[i] == 0) continue;
    const double distance = block.distance[i], w = weight[i];
    // NaN, which no comparison is true of, lies in the last one.
    const int64_t bin =
        sums.bin_of[distance < kLastEdge ? static_cast<int64_t>(kSteps * distance) : kSteps * kLastEdge];
    double* const its = sums.bins + ((sums.bin_rows ? sums.bin_rows[begin + i] : 0) * kBins + bin) * kBinSums;
    const double first = w * distance, second = first * distance;
    its[0] += 1;
    its[1] += w;
    its[2] += first;
    its[3] += second;
    its[4] += second * distance;
    its[5] += w * block.won[i];
  }
}

}  // namespace

namespace PREFLOSS_CPU_PATH {

void pair_statistics(const EvaluatedPairs& given, double* result) {
  PairStatistics statistics(given);
  Block block;
  const int64_t pairs = given.pairs.count;
  for (int64_t begin = 0; begin < pairs; begin += kPairsAtOnce) {
    const int count = static_cast<int>(std::min<int64_t>(kPairsAtOnce, pairs - begin));
    statistics.compute(begin, count, block);
    for (int k = 0; k < given.statistics(); k++)
      std::copy(block.statistics[k], block.statistics[k] + count, result + k * pairs + begin);
  }
}

void add_statistics(const EvaluatedPairs& given, const StatisticSums& sums) {
  PairStatistics statistics(given);
  const bool weighted = static_cast<bool>(given.pairs.weight);
  BlockColumn weight(given.pairs.weight, 1);
  Block block;
  Factors factors;
  std::fill(factors.powers[0], factors.powers[0] + kPairsAtOnce, 1.0);
  const int judged = given.judge ? given.statistics() - kOfJudge : -1;
  for (int64_t begin = 0; begin < given.pairs.count; begin += kPairsAtOnce) {
    const int count = static_cast<int>(std::min<int64_t>(kPairsAtOnce, given.pairs.count - begin));
    statistics.compute(begin, count, block);
    const double* const w = weight.load(begin, count);
    for (int i = 0; i < count; i++) factors.powers[1][i] = w[i] / sums.scale;
    for (int power = 2; power <= kMostPowers; power++) {
      for (int i = 0; i < count; i++) factors.powers[power][i] = factors.powers[power - 1][i] * factors.powers[1][i];
    }
    int64_t ready = -1;  // the statistic that `factors` has
    for (int64_t k = 0; k < sums.columns; k++) {
      const Moment& moment = sums.moments[k];
      if (moment.statistic != ready && moment.statistic >= 0) {
        ready = moment.statistic;
        const double shift = sums.shifts[ready], *value = block.statistics[ready];
        const bool all = !given.judge || ready == judged;
        for (int i = 0; i < count; i++) {
          const double y = all || block.labelled[i] != 0 ? value[i] - shift : 0.0;
          factors.value[i] = y;
          factors.square[i] = y * y;
        }
      }
      with_entry(moment, weighted, factors, [&](const auto& entry) {
        double* const unit = sums.units + k * sums.unit_rows;
        if (!sums.rows) {
          *unit += sum(count, entry);
        } else {
          for (int i = 0; i < count; i++) unit[sums.rows[begin + i]] += entry(i);
        }
      });
    }
    add_to_bins(block, factors.powers[1], sums, begin, count);
  }
}

}  // namespace PREFLOSS_CPU_PATH
}  // namespace prefloss::cpu
