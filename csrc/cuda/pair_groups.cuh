// Which pairs of a row a thread has, and in how many blocks they are.
//
// A row is cut into chunks of kThreads * kAhead groups, a group being 16 bytes of rewards, which one thread loads at
// once. Sums are float64 and added in an order that the sizes alone decide: by each thread, by shuffles within a warp,
// by the first thread over the warps, and, where a row has several blocks, by a second launch over their partial sums.
// There are no atomics, so the bits are the same from run to run.
#pragma once

#include <algorithm>

#include "../pair_math.h"
#include "blocks.cuh"
#include "columns.cuh"

namespace prefloss::cuda {
namespace {

constexpr int kAhead = 2;  // groups that a thread has of a chunk: so many loads of each column are under way

template <typename Stored>
constexpr int kChunk = kThreads * kAhead * kGroup<Stored>;

// With options a pair needs more registers, and a thread has fewer pairs at a time.
template <typename Stored>
constexpr int kSmallGroup = kGroup<Stored> < 4 ? kGroup<Stored> : 4;

// Blocks a row of a kernel that adds up `size` pairs at a time. A row without pairs has a block too: its loss is 0.
// What a block costs at its end is shared by several steps, where there are enough of them to keep a GPU busy.
inline int64_t summing_blocks(int64_t count, int64_t size, int64_t few, int64_t most) {
  const int64_t steps = (count + size - 1) / size;
  return std::max<int64_t>(std::min(steps, std::clamp(steps / 4, few, most)), 1);
}

template <typename Stored>
int64_t plain_blocks(int64_t count) {
  return summing_blocks(count, kChunk<Stored>, 256, 2048);
}

template <typename Stored>
int64_t general_blocks(int64_t count) {
  return summing_blocks(count, kThreads * kSmallGroup<Stored>, 512, 4096);
}

// With PairStats a block's end takes long.
template <typename Stored>
int64_t statistics_blocks(int64_t count) {
  return summing_blocks(count, kThreads * kSmallGroup<Stored>, 64, 512);
}

// Calls body(index, count, chosen, rejected) for this thread's group of those from `begin` on: `count` pairs from
// `index` on, kSize but at the end of the row.
template <typename Stored, int kSize, typename Body>
__device__ __forceinline__ void with_group(const Pairs& pairs, int64_t row, int64_t begin, const Body& body) {
  const int64_t index = begin + static_cast<int>(threadIdx.x) * kSize, left = pairs.count - index;
  if (left <= 0) return;
  const int count = left < kSize ? static_cast<int>(left) : kSize;
  RealOf<Stored> chosen[kSize], rejected[kSize];
  load_as<Stored>(pairs.chosen, row, index, count, chosen);
  load_as<Stored>(pairs.rejected, row, index, count, rejected);
  body(index, count, chosen, rejected);
}

// The same for this thread's groups of every `by`-th chunk from `chunk` on. The loads of a chunk's groups come before
// any use, since what hides the latency of loads is how many are under way.
template <typename Stored, typename Body>
__device__ __forceinline__ void for_groups(const Pairs& pairs, int64_t row, int64_t chunk, int64_t by,
                                           const Body& body) {
  constexpr int kSize = kGroup<Stored>, kStep = kThreads * kSize;
  using Group = Raw<Stored, kSize>;
  const int64_t whole_chunks = pairs.count / kChunk<Stored>;
  if (Group::fits(pairs.chosen.entry<Stored>(row, 0), pairs.chosen.stride) &&
      Group::fits(pairs.rejected.entry<Stored>(row, 0), pairs.rejected.stride)) {
#pragma unroll 1
    for (; chunk < whole_chunks; chunk += by) {
      const int64_t first = chunk * kChunk<Stored> + static_cast<int>(threadIdx.x) * kSize;
      const Stored *first_chosen = pairs.chosen.entry<Stored>(row, first),
                   *first_rejected = pairs.rejected.entry<Stored>(row, first);
      Group chosen[kAhead], rejected[kAhead];
#pragma unroll
      for (int g = 0; g < kAhead; g++) {
        chosen[g].load(first_chosen + g * kStep);
        rejected[g].load(first_rejected + g * kStep);
      }
#pragma unroll
      for (int g = 0; g < kAhead; g++) {
        RealOf<Stored> a[kSize], b[kSize];
        chosen[g].widen_to(a);
        rejected[g].widen_to(b);
        body(first + g * kStep, kSize, a, b);
      }
    }
  }
#pragma unroll 1
  for (; chunk * kChunk<Stored> < pairs.count; chunk += by) {
#pragma unroll 1
    for (int g = 0; g < kAhead; g++) with_group<Stored, kSize>(pairs, row, chunk * kChunk<Stored> + g * kStep, body);
  }
}

// Adds the losses of the first `count` pairs of a group.
template <int kSize>
__device__ __forceinline__ void add_losses(int count, const double (&chosen)[kSize], const double (&rejected)[kSize],
                                           PairLossSum& sum) {
#pragma unroll
  for (int i = 0; i < kSize; i++) {
    if (i < count) sum.add(chosen[i] - rejected[i]);
  }
}

template <int kSize>
__device__ __forceinline__ void add_losses(int count, const float (&chosen)[kSize], const float (&rejected)[kSize],
                                           PairLossSum& sum) {
#pragma unroll
  for (int first = 0; first < kSize; first += FewLosses::kMost) {
    FewLosses few;
#pragma unroll
    for (int i = first; i < first + FewLosses::kMost; i++) {
      if (i < count) few.add(chosen[i] - rejected[i]);
    }
    few.add_to(sum);
  }
}

// The warps of a block with pairs, where each thread has `size` of a step that begins at pair number `begin`.
__device__ __forceinline__ int warps_with_pairs(const Pairs& pairs, int64_t begin, int size) {
  return warps_of((pairs.count - begin + size - 1) / size);
}

}  // namespace
}  // namespace prefloss::cuda
