// How a row is cut into chunks and blocks, and sums over a block. Compiled once per instruction set, so everything here
// has internal linkage.
#pragma once

#include <algorithm>

#include "../pairs.h"
#include "columns.h"

namespace prefloss::cpu {
namespace {

constexpr int64_t kChunk = 8192;

inline int64_t chunks_of(const Pairs& pairs) { return (pairs.count + kChunk - 1) / kChunk; }

// Calls body(block_begin, block_count) for the blocks of a chunk.
template <typename Body>
void for_blocks(int64_t chunk, int64_t count, const Body& body) {
  const int64_t end = std::min(count, (chunk + 1) * kChunk);
  for (int64_t begin = chunk * kChunk; begin < end; begin += kBlock)
    body(begin, static_cast<int>(std::min<int64_t>(kBlock, end - begin)));
}

// The sum of entry(0 ... count - 1), float64, in an order that `count` alone decides; four sums at a time hide the
// latency of an addition.
template <typename Entry>
double sum(int count, const Entry& entry) {
  const int quarter = count / 4;
  double first = 0, second = 0, third = 0, fourth = 0;
#pragma omp simd reduction(+ : first, second, third, fourth)
  for (int i = 0; i < quarter; i++) {
    first += entry(i);
    second += entry(quarter + i);
    third += entry(2 * quarter + i);
    fourth += entry(3 * quarter + i);
  }
  for (int i = 4 * quarter; i < count; i++) first += entry(i);
  return (first + second) + (third + fourth);
}

}  // namespace
}  // namespace prefloss::cpu
