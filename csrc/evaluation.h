// What an evaluation knows of pairs: the numbers of each pair, and their sums. python/prefloss/evaluation/statistics.py
// says what they are; what crosses the seam between it and the kernel.
#pragma once

#include "pairs.h"

namespace prefloss {

// In the order of `Options.statistics` in Python. Those of a baseline and of a judge are there if it is; the last two
// serve the bins of |z|, and are no statistics.
enum Statistic : int {
  kLossOfPair,
  kCorrectOfPair,
  kTiedOfPair,
  kMarginOfPair,
  kBrier,
  kScores,  // five of them
  kOfPair = kScores + 5,
  kOfBaseline = 4,  // loss, correct, both differences
  kOfJudge = 2,     // judged loss, gap
  kMostStatistics = kOfPair + kOfBaseline + kOfJudge,
};

// All columns are float64 or float32, on the host. `pairs` has no rows, and its weights are not read by what is of a
// pair.
struct EvaluatedPairs {
  Pairs pairs;
  Column baseline_chosen, baseline_rejected, judge;

  int statistics() const {
    return kOfPair + (baseline_chosen ? static_cast<int>(kOfBaseline) : 0) + (judge ? static_cast<int>(kOfJudge) : 0);
  }
};

// The sum of w^weight_power y^power over a row's pairs, y being a statistic less its shift, or 1 where there is none
// (-1). Contiguous in memory as int64.
struct Moment {
  int64_t statistic, weight_power, power;
};

constexpr int kBins = 20;                   // of |z|, the last one without end
constexpr int kSteps = 20, kLastEdge = 20;  // edges are multiples of 1 / kSteps, up to this one
constexpr int kBinSums = 6;  // pairs, w, w |z|, w |z|^2, w |z|^3, w where the response of greater reward has won

struct StatisticSums {
  const Moment* moments = nullptr;
  int64_t columns = 0, unit_rows = 1;  // as many moments
  const double* shifts = nullptr;      // one a statistic
  double scale = 1;                    // weights are divided by it
  const int64_t* bin_of = nullptr;     // of floor(kSteps |z|), up to that of kLastEdge
  // The row of `units` and of `bins` that each pair belongs to; null where there is one.
  const int64_t *rows = nullptr, *bin_rows = nullptr;
  double* units = nullptr;  // (columns, unit_rows)
  double* bins = nullptr;   // (rows, kBins, kBinSums)
};

}  // namespace prefloss
