// Pairs that are comparisons of items by index: the loss, and the slopes of the items, in one pass. Compiled once per
// instruction set, so everything here has internal linkage.
//
// The slopes of an item are the sum over its comparisons. The comparisons are cut into stripes, by the sizes alone;
// each adds into float64 sums of its own, one an item, and those are added in order: no atomics, and the same bits for
// any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "chunks.h"

namespace prefloss::cpu {
namespace {

constexpr int64_t kMostStripes = 16;

// The stripes' sums never take more memory than 2 float64 a comparison.
int64_t stripes_of(const Pairs& pairs, int64_t items, bool slopes) {
  const int64_t most = std::min(kMostStripes, chunks_of(pairs));
  return slopes ? std::clamp<int64_t>(2 * pairs.count / std::max<int64_t>(items, 1), 1, std::max<int64_t>(most, 1))
                : most;
}

// Whether the indices of a chunk are all in [0, items). Nothing is read by them before this is known.
bool in_range(const Index& index, int64_t items, int64_t chunk, int64_t count) {
  const int64_t begin = chunk * kChunk, size = std::min(kChunk, count - begin);
  return index.from(begin, [&](const auto* entries) {
    bool outside = false;
    for (int64_t i = 0; i < size; i++) outside |= static_cast<uint64_t>(entries[i]) >= static_cast<uint64_t>(items);
    return !outside;
  });
}

// The loss, and for each item the sum of the derivatives of its pairs' terms, not divided (`slopes` may be missing).
// False where an index is out of range; the outputs mean nothing then.
template <typename Real>
bool indexed(const Pairs& pairs, int64_t items, const Divisor& divisor, const ForwardOutputs& outputs, double* slopes,
             int threads) {
  const int64_t chunks = chunks_of(pairs), stripes = stripes_of(pairs, items, slopes != nullptr);
  std::vector<Partial> partials(static_cast<size_t>(chunks), Partial::zero());
  std::vector<double> more_slopes(slopes ? static_cast<size_t>((stripes - 1) * items) : 0);
  const auto slopes_of = [&](int64_t stripe) {
    return stripe == 0 ? slopes : &more_slopes[static_cast<size_t>((stripe - 1) * items)];
  };
  if (slopes) std::fill(slopes, slopes + items, 0.0);
  std::atomic<bool> outside{false};
  for_chunks(stripes, threads, [&](int64_t stripe) {
    Gradients gradients;
    if (slopes) {
      gradients.chosen = {slopes_of(stripe), Dtype::kFloat64, 1, 0, pairs.chosen.index};
      gradients.rejected = {slopes_of(stripe), Dtype::kFloat64, 1, 0, pairs.rejected.index};
    }
    for (int64_t chunk = stripe * chunks / stripes; chunk < (stripe + 1) * chunks / stripes; chunk++) {
      if (!in_range(pairs.chosen.index, items, chunk, pairs.count) ||
          !in_range(pairs.rejected.index, items, chunk, pairs.count))
        outside = true;
      if (outside) return;
      partials[static_cast<size_t>(chunk)] = forward_chunk<Real>(pairs, outputs, 0, chunk);
      if (slopes) backward_chunk<Real>(pairs, 1, Column{}, gradients, 0, chunk);
    }
  });
  if (outside) return false;
  Partial total = Partial::zero();
  for (const Partial& partial : partials) total.add(partial);
  finish_row<Real>(total, divisor, outputs, 0);
  if (slopes && stripes > 1) {
    for_chunks((items + kChunk - 1) / kChunk, threads, [&](int64_t chunk) {
      const int64_t begin = chunk * kChunk, end = std::min(items, begin + kChunk);
      for (int64_t stripe = 1; stripe < stripes; stripe++) {
        const double* more = slopes_of(stripe);
        for (int64_t i = begin; i < end; i++) slopes[i] += more[i];
      }
    });
  }
  return true;
}

}  // namespace
}  // namespace prefloss::cpu
