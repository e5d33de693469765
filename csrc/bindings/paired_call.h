// What an eager call over pairs says beside its tensors, whether they are rewards or comparisons by index.
#pragma once

#include <optional>

#include "views.h"

namespace prefloss {

// How the rewards hold the pairs: two tensors, or one. python/prefloss/pairs.py names them too.
enum Layout : int { kPaired, kHalves, kInterleaved };

struct PairedCall {
  int layout = kPaired;
  Options options;
  int reduction = kMean;
  std::optional<double> denominator;
  bool statistics = false;

  // `weights`: the total weight of each row, of kSums entries; forward, which computes them, has none.
  Divisor divisor(const Pairs& pairs, const double* weights) const {
    if (reduction != kMean) return {};
    if (denominator) return {*denominator};
    if (pairs.weight) return {1, weights, kSums, true};
    return {pairs.count > 0 ? static_cast<double>(pairs.count) : 1.0};
  }
};

}  // namespace prefloss
