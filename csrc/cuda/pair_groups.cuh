// Which pairs of a row a thread has, and in how many blocks they are.
//
// A row is cut into chunks of kThreads * kAhead groups, a group being 16 bytes of rewards, which one thread loads at
// once, or fewer where there are other columns beside them. Sums are float64 and added in an order that the sizes alone
// decide: by each thread, by shuffles within a warp, by the first thread over the warps, and, where a row has several
// blocks, by a second launch over their partial sums. There are no atomics, so the bits are the same from run to run.
#pragma once

#include <algorithm>

#include "../pair_math.h"
#include "blocks.cuh"
#include "columns.cuh"

namespace prefloss::cuda {
namespace {

constexpr int kAhead = 2;  // groups that a thread has of a chunk: so many loads of each column are under way

// With more columns a pair needs more registers, and a thread has fewer pairs at a time.
template <typename Stored>
constexpr int kSmallGroup = kGroup<Stored> < 4 ? kGroup<Stored> : 4;

// The pairs of a group, and of a chunk, of rewards alone or beside optional columns.
template <typename Stored, bool kOptional>
constexpr int kPairs = kOptional ? kSmallGroup<Stored> : kGroup<Stored>;

template <typename Stored, bool kOptional = false>
constexpr int kChunk = kThreads * kAhead * kPairs<Stored, kOptional>;

// Blocks of a kernel with options that a multiprocessor runs at once. float64 would spill registers with two.
template <typename Stored>
constexpr int kBlocksOf = sizeof(Stored) == 8 ? 1 : 2;

// Blocks a row of a kernel that adds up `size` pairs at a time. A row without pairs has a block too: its loss is 0.
// What a block costs at its end is shared by `share` pairs, where there are enough of them to keep a GPU busy.
inline int64_t summing_blocks(int64_t count, int64_t size, int64_t share, int64_t few, int64_t most) {
  const int64_t steps = (count + size - 1) / size;
  return std::max<int64_t>(std::min(steps, std::clamp(steps * size / share, few, most)), 1);
}

template <typename Stored, bool kOptional>
int64_t chunk_blocks(int64_t count) {
  constexpr int kSize = kChunk<Stored, kOptional>;
  return summing_blocks(count, kSize, 4 * kSize, 256, 2048);
}

template <typename Stored>
int64_t second_blocks(int64_t count) {
  constexpr int kSize = kThreads * kSmallGroup<Stored>;
  return summing_blocks(count, kSize, 4 * kSize, 512, 4096);
}

// With PairStats a block's end takes long.
template <typename Stored, bool kOptional>
int64_t statistics_blocks(int64_t count) {
  return summing_blocks(count, kThreads * kPairs<Stored, kOptional>, 4 * kThreads * kSmallGroup<Stored>, 64, 512);
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

// A group as a kernel computes with it.
template <typename Real, int kSize>
struct Group {
  Real chosen[kSize], rejected[kSize], margin[kSize], weight[kSize], target[kSize];
  Real factor[kSize];  // of a pair's gradient
};

// A column's entries of a thread's groups of a whole chunk, as they are stored.
template <typename Stored, int kSize, int kGroups>
struct Ahead {
  Raw<Stored, kSize> groups[kGroups];

  static __device__ __forceinline__ bool fits(const Column& column, int64_t row) {
    return Raw<Stored, kSize>::fits(column.entry<Stored>(row, 0), column.stride);
  }

  __device__ __forceinline__ void load(const Column& column, int64_t row, int64_t first) {
    const Stored* entry = static_cast<const Stored*>(column.data) + row * column.row_stride + first;
#pragma unroll
    for (int g = 0; g < kGroups; g++) groups[g].load(entry + g * kThreads * kSize);
  }
};

// The same of an optional column. A weight may be a mask.
template <typename Stored, int kSize, int kGroups, bool kMask>
struct OptionalAhead {
  using Real = RealOf<Stored>;
  Raw<Real, kSize> groups[kGroups];  // no entry is larger than a Real

  static __device__ __forceinline__ bool fits(const Column& column, int64_t row) {
    return !column || with_optional<Stored, kMask>(column, [&](auto* entry) {
      return Ahead<Pointee<decltype(entry)>, kSize, kGroups>::fits(column, row);
    });
  }

  __device__ __forceinline__ void load(const Column& column, int64_t row, int64_t first) {
    if (!column) return;
    with_optional<Stored, kMask>(column, [&](auto* entry) {
      Ahead<Pointee<decltype(entry)>, kSize, kGroups> ahead;
      ahead.load(column, row, first);
#pragma unroll
      for (int g = 0; g < kGroups; g++) memcpy(groups[g].words, ahead.groups[g].words, sizeof ahead.groups[g].words);
    });
  }

  __device__ __forceinline__ void widen_to(const Column& column, int g, Real (&values)[kSize]) const {
    if (!column) return;
    with_optional<Stored, kMask>(column, [&](auto* entry) {
      Raw<Pointee<decltype(entry)>, kSize> raw;
      memcpy(raw.words, groups[g].words, sizeof raw.words);
      raw.widen_to(values);
    });
  }
};

// The columns of a row that a kernel loads: the rewards and, if kOptional, those of the options and of the gradients'
// factors. Numbers stand for those that are not given.
template <typename Stored, bool kOptional, int kGroupsAhead = kAhead>
struct Columns {
  using Real = RealOf<Stored>;
  static constexpr int kSize = kPairs<Stored, kOptional>, kGroups = kGroupsAhead;
  using Values = Group<Real, kSize>;
  using Rewards = Ahead<Stored, kSize, kGroups>;
  using Optional = OptionalAhead<Stored, kSize, kGroups, false>;
  using Weight = OptionalAhead<Stored, kSize, kGroups, true>;
  const Pairs& pairs;
  int64_t row;
  Column factors = Column();
  Real factor = 1;

  struct Loaded {
    Rewards chosen, rejected;
    Optional margin, target, factor;
    Weight weight;
  };

  // Whether all of them can be loaded a group at a time.
  __device__ __forceinline__ bool fit() const {
    bool result = Rewards::fits(pairs.chosen, row) && Rewards::fits(pairs.rejected, row);
    if constexpr (kOptional)
      result = result && Optional::fits(pairs.margin, row) && Weight::fits(pairs.weight, row) &&
               Optional::fits(pairs.target, row) && Optional::fits(factors, row);
    return result;
  }

  __device__ __forceinline__ void load(int64_t first, Loaded& loaded) const {
    loaded.chosen.load(pairs.chosen, row, first);
    loaded.rejected.load(pairs.rejected, row, first);
    if constexpr (kOptional) {
      loaded.margin.load(pairs.margin, row, first);
      loaded.weight.load(pairs.weight, row, first);
      loaded.target.load(pairs.target, row, first);
      loaded.factor.load(factors, row, first);
    }
  }

  __device__ __forceinline__ void widen_to(const Loaded& loaded, int g, Values& values) const {
    loaded.chosen.groups[g].widen_to(values.chosen);
    loaded.rejected.groups[g].widen_to(values.rejected);
    set_numbers(values);
    if constexpr (kOptional) {
      loaded.margin.widen_to(pairs.margin, g, values.margin);
      loaded.weight.widen_to(pairs.weight, g, values.weight);
      loaded.target.widen_to(pairs.target, g, values.target);
      loaded.factor.widen_to(factors, g, values.factor);
    }
  }

  // The first `count` pairs from `index` on, of columns of any stride.
  __device__ __forceinline__ void load_group(int64_t index, int count, Values& values) const {
    load_as<Stored>(pairs.chosen, row, index, count, values.chosen);
    load_as<Stored>(pairs.rejected, row, index, count, values.rejected);
    set_numbers(values);
    if constexpr (kOptional) {
      if (pairs.margin) load_optional<Stored>(pairs.margin, 0, row, index, count, values.margin);
      if (pairs.weight) load_optional<Stored, true>(pairs.weight, 0, row, index, count, values.weight);
      if (pairs.target) load_optional<Stored>(pairs.target, 0, row, index, count, values.target);
      if (factors) load_optional<Stored>(factors, 0, row, index, count, values.factor);
    }
  }

 private:
  __device__ __forceinline__ void set_numbers(Values& values) const {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      values.margin[i] = static_cast<Real>(pairs.options.margin);
      values.weight[i] = Real(1);
      values.target[i] = static_cast<Real>(pairs.options.target);
      values.factor[i] = factor;
    }
  }
};

// Calls body(index, count, values) for this thread's groups of every `by`-th chunk from `chunk` on: `count` pairs from
// `index` on, fewer than a group only at the end of the row. The loads of a chunk's groups come before any use, since
// what hides the latency of loads is how many are under way.
template <typename These, typename Body>
__device__ __forceinline__ void for_groups(const These& columns, int64_t chunk, int64_t by, const Body& body) {
  constexpr int kSize = These::kSize, kGroups = These::kGroups, kStep = kThreads * kSize;
  constexpr int64_t kPairsOfChunk = kGroups * kStep;
  const int64_t pairs = columns.pairs.count, whole_chunks = pairs / kPairsOfChunk;
  if (columns.fit()) {
#pragma unroll 1
    for (; chunk < whole_chunks; chunk += by) {
      const int64_t first = chunk * kPairsOfChunk + static_cast<int>(threadIdx.x) * kSize;
      typename These::Loaded loaded;
      columns.load(first, loaded);
#pragma unroll
      for (int g = 0; g < kGroups; g++) {
        typename These::Values values;
        columns.widen_to(loaded, g, values);
        body(first + g * kStep, kSize, values);
      }
    }
  }
#pragma unroll 1
  for (; chunk * kPairsOfChunk < pairs; chunk += by) {
#pragma unroll 1
    for (int g = 0; g < kGroups; g++) {
      const int64_t index = chunk * kPairsOfChunk + g * kStep + static_cast<int>(threadIdx.x) * kSize;
      const int64_t left = pairs - index;
      if (left <= 0) break;
      const int count = left < kSize ? static_cast<int>(left) : kSize;
      typename These::Values values;
      columns.load_group(index, count, values);
      body(index, count, values);
    }
  }
}

// A thread's losses of many pairs, where nothing but their sum is wanted: with one logarithm for very many of them.
class ManyLosses {
  using FewLosses = LossProduct<float, 4>;  // float64 is slow on most GPUs
  PairLossSum sum_;
  double put_aside_ = 0;
  int added_ = 0;

  template <int kSize>
  __device__ __forceinline__ void add_all(int count, const double (&z)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      if (i < count) sum_.add(z[i]);
    }
  }

  template <int kSize>
  __device__ __forceinline__ void add_all(int count, const float (&z)[kSize]) {
#pragma unroll
    for (int first = 0; first < kSize; first += FewLosses::kMost) {
      FewLosses few;
#pragma unroll
      for (int i = first; i < first + FewLosses::kMost; i += 2) {
        if (i + 1 < count)
          few.add(TwoFloats(z[i], z[i + 1]));
        else if (i < count)
          few.add(z[i]);
      }
      sum_.add_product(few);
    }
  }

 public:
  // Adds pair_loss(z) of the first `count` pairs of a group.
  template <typename Real, int kSize>
  __device__ __forceinline__ void add(int count, const Real (&z)[kSize]) {
    if (added_ + kSize > PairLossSum::kMost) {
      put_aside_ += sum_.value();
      sum_ = PairLossSum();
      added_ = 0;
    }
    add_all(count, z);
    added_ += kSize;
  }

  __device__ __forceinline__ double value() const { return put_aside_ + sum_.value(); }
};

// Whether a row's loss is what ManyLosses adds up, where no terms are stored.
template <typename Real>
PREFLOSS_HOST_DEVICE bool is_sum_of_losses(const Formula<Real>& formula, const Pairs& pairs) {
  return formula.is_softplus() && !pairs.weight;
}

// The warps of a block with pairs, where each thread has `size` of a step that begins at pair number `begin`.
__device__ __forceinline__ int warps_with_pairs(const Pairs& pairs, int64_t begin, int size) {
  return warps_of((pairs.count - begin + size - 1) / size);
}

}  // namespace
}  // namespace prefloss::cuda
