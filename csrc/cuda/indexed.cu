// Comparisons of items by index on the GPU: the loss, and the slopes of the items, in one pass. Mirrors
// cpu/indexed.cpp.
//
// A comparison's slope is added to its two items by integer atomics: a slope is an integer times a power of two, and an
// item has a 64-bit word for each range of powers (see `Bins`), wide enough for all the slopes that there can be. So
// nothing is rounded before an item's words become its slope: the sum is exact, whatever the order. The loss is added
// up as that of gathered scores is in paired.cu, in the same order.
#include <algorithm>
#include <cmath>

#include "pair_groups.cuh"

#undef NDEBUG  // what tells of an index out of range
#include <cassert>

namespace prefloss::cuda {
namespace {

// ---- Exact sums ----

// Where the bits of a number to be added are: the significand of float64 in one part, or in two. That of a float32
// slope has 24 bits, of its product with a float32 weight 48, of a float64 slope 53.
template <typename Real>
struct Parts;
template <>
struct Parts<float> {
  static constexpr int kBits = 24, kUnused = 5;
};
template <>
struct Parts<double> {
  static constexpr int kBits = 27, kUnused = 0;
};
constexpr int kSignificand = 53, kBias = 1075;  // of float64, as an integer times a power of two

// The words of the items: those of bin b hold multiples of 2^(lowest + b * width). A part of a number goes to the bin
// that its last bit is in, so it is less than 2^(kBits + width - 1) multiples, and all of an item's fit in 2^62. After
// the bins comes a word of flags for what is not finite. There may be several copies of all words, which different
// blocks add to: then those that add to the same item wait less for each other.
struct Bins {
  static constexpr int kMostCopies = 32;
  static constexpr unsigned long long kInfinity = 1, kMinusInfinity = 2, kNan = 4;
  unsigned long long* words = nullptr;  // null: no slopes are wanted
  int64_t items = 0;
  int copies = 0, lowest = 0, width = 0, bins = 0;

  __host__ __device__ __forceinline__ int64_t of_copy() const { return (bins + 1) * items; }
};

// The exponent of the greatest power of two that a slope may have.
template <typename Real>
int greatest_exponent(const Pairs& pairs, bool weighted) {
  const int most = sizeof(Real) == sizeof(double) ? 1023 : weighted ? 255 : 127;
  if (weighted || pairs.target || pairs.options.center_rewards_coefficient != 0) return most;
  const Formula<double> formula(pairs);
  const double greatest = formula.beta * (std::abs(formula.offset.right) + std::abs(formula.offset.wrong));
  int exponent = 0;
  std::frexp(greatest, &exponent);
  return std::isfinite(greatest) ? std::min(exponent + 1, most) : most;
}

template <typename Real>
Bins bins_for(const Comparisons& comparisons, const Pairs& pairs) {
  constexpr int kBits = Parts<Real>::kBits;
  const bool weighted = pairs.weight && pairs.weight.dtype != Dtype::kBool, wide = sizeof(Real) == sizeof(double);
  Bins result;
  result.items = comparisons.items;
  result.width = 63 - kBits - 2;  // an item may be compared with itself, and a number have two parts
  while (result.width > 0 && (pairs.count >> (63 - kBits - 2 - result.width)) > 0) result.width--;
  // The last bit of the least number there is, written with all the bits of its parts.
  result.lowest = wide ? 1 - kBias : weighted ? -298 - 2 * kBits + 1 : -149 - kBits + 1;
  const int highest = greatest_exponent<Real>(pairs, weighted) - kBits + 1;
  result.bins = result.width > 1 ? std::max(highest - result.lowest, 0) / result.width + 1 : 0;
  // A word is written and read again, which costs little beside four comparisons.
  const int64_t worth = pairs.count / (4 * std::max<int64_t>(result.of_copy(), 1));
  result.copies = static_cast<int>(std::clamp<int64_t>(worth, 1, Bins::kMostCopies));
  return result;
}

__device__ __forceinline__ void add_part(const Bins& bins, unsigned long long* item, uint64_t part, int exponent,
                                         bool negative) {
  if (part == 0) return;
  const unsigned place = static_cast<unsigned>(exponent - bins.lowest), width = static_cast<unsigned>(bins.width);
  const uint64_t multiples = part << place % width;
  atomicAdd(item + place / width * bins.items, static_cast<unsigned long long>(negative ? 0 - multiples : multiples));
}

// Adds a number to an item of a copy of the words.
template <typename Real>
__device__ __forceinline__ void add(const Bins& bins, unsigned long long* words, int64_t item, double number) {
  constexpr int kBits = Parts<Real>::kBits, kRest = kSignificand - kBits, kUnused = Parts<Real>::kUnused;
  const uint64_t bits = to_bits(number), fraction = bits & ((uint64_t{1} << (kSignificand - 1)) - 1);
  const int biased = static_cast<int>(bits >> (kSignificand - 1) & 0x7ff);
  const bool negative = bits >> 63 != 0;
  if (biased == 0x7ff) {
    atomicOr(words + bins.bins * bins.items + item, fraction != 0 ? Bins::kNan
                                                    : negative    ? Bins::kMinusInfinity
                                                                  : Bins::kInfinity);
    return;
  }
  const uint64_t significand = biased == 0 ? fraction : fraction | uint64_t{1} << (kSignificand - 1);
  const int exponent = (biased == 0 ? 1 : biased) - kBias;
  add_part(bins, words + item, significand >> kRest, exponent + kRest, negative);
  add_part(bins, words + item, (significand & ((uint64_t{1} << kRest) - 1)) >> kUnused, exponent + kUnused, negative);
}

// What an item's words add up to, within two roundings. The words become digits of either sign, of `width` bits, so
// that the first of them says how large the number is.
__device__ __forceinline__ double sum_of(const Bins& bins, int64_t item) {
  unsigned long long flags = 0;
  for (int copy = 0; copy < bins.copies; copy++)
    flags |= bins.words[copy * bins.of_copy() + bins.bins * bins.items + item];
  if (flags == Bins::kInfinity) return HUGE_VAL;
  if (flags == Bins::kMinusInfinity) return -HUGE_VAL;
  if (flags != 0) return HUGE_VAL - HUGE_VAL;
  const int64_t half = int64_t{1} << (bins.width - 1);
  int64_t carry = 0;
  double sum = 0;
  for (int bin = 0; bin < bins.bins; bin++) {
    int64_t word = carry;
#pragma unroll 4
    for (int copy = 0; copy < bins.copies; copy++)
      word += static_cast<int64_t>(bins.words[copy * bins.of_copy() + bin * bins.items + item]);
    carry = (word + half) >> bins.width;
    sum += std::ldexp(static_cast<double>(word - carry * 2 * half), bins.lowest + bin * bins.width);
  }
  return sum + std::ldexp(static_cast<double>(carry), bins.lowest + bins.bins * bins.width);
}

// ---- The pass ----

// Consecutive indices, of int64 or int32.
template <typename Integer, int kCount>
__device__ __forceinline__ void load_integers(const Column& column, int64_t index, int count,
                                              int64_t (&values)[kCount]) {
  const Integer* first = column.entry<Integer>(0, index);
  if (count == kCount && Raw<Integer, kCount>::fits(first, column.stride)) {
    Raw<Integer, kCount> raw;
    Integer entries[kCount];
    raw.load(first);
    memcpy(entries, raw.words, sizeof entries);
#pragma unroll
    for (int i = 0; i < kCount; i++) values[i] = entries[i];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i++, first += column.stride) values[i] = i < count ? load_one(first) : 0;
  }
}

template <int kCount>
__device__ __forceinline__ void load_indices(const Column& column, int64_t index, int count,
                                             int64_t (&values)[kCount]) {
  if (column.dtype == Dtype::kInt64)
    load_integers<int64_t>(column, index, count, values);
  else
    load_integers<int32_t>(column, index, count, values);
}

// This thread's comparisons of those from `begin` on, and the scores that they compare.
template <typename Stored>
struct Compared {
  using Real = RealOf<Stored>;
  static constexpr int kCount = kGroup<Real>;
  int64_t index, first[kCount], second[kCount];
  int count;
  Real chosen[kCount], rejected[kCount];

  // Reads nothing by an index that is out of range.
  __device__ __forceinline__ Compared(const Comparisons& comparisons, int64_t begin, int64_t end)
      : index(begin + static_cast<int>(threadIdx.x) * kCount) {
    count = static_cast<int>(end - index < kCount ? (end > index ? end - index : 0) : kCount);
    if (count == 0) return;
    load_indices(comparisons.chosen, index, count, first);
    load_indices(comparisons.rejected, index, count, second);
    const uint64_t items = static_cast<uint64_t>(comparisons.items);
    bool in_range = true;
#pragma unroll
    for (int i = 0; i < kCount; i++)
      in_range = in_range && static_cast<uint64_t>(first[i]) < items && static_cast<uint64_t>(second[i]) < items;
    assert(in_range && "chosen_index and rejected_index must be in [0, number of scores)");
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      chosen[i] = static_cast<Real>(widen(load_one(comparisons.scores.entry<Stored>(0, first[i]))));
      rejected[i] = static_cast<Real>(widen(load_one(comparisons.scores.entry<Stored>(0, second[i]))));
    }
  }
};

__device__ __forceinline__ unsigned long long* words_of(const Bins& bins) {
  return bins.words + blockIdx.x % static_cast<unsigned>(bins.copies) * bins.of_copy();
}

// Calls body(pairs) for this thread's comparisons of every `by`-th chunk from `chunk` on.
template <typename Stored, typename Body>
__device__ __forceinline__ void for_compared(const Comparisons& comparisons, int64_t count, int64_t chunk, int64_t by,
                                             const Body& body) {
  using Real = RealOf<Stored>;
#pragma unroll 1
  for (; chunk * kChunk<Real> < count; chunk += by) {
#pragma unroll 1
    for (int g = 0; g < kAhead; g++) {
      const Compared<Stored> pairs(comparisons, chunk * kChunk<Real> + g * kThreads * kGroup<Real>, count);
      if (pairs.count > 0) body(pairs);
    }
  }
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 2)
    plain_indexed(Comparisons comparisons, int64_t count, Divisor divisor, ForwardOutputs outputs, Partial* partials,
                  int64_t blocks, Bins bins) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kGroup<Real>;
  unsigned long long* const words = words_of(bins);
  for_parts(1, blocks, [&](int64_t row, int64_t block) {
    Partial partial = Partial::zero();
    ManyLosses losses;
    for_compared<Stored>(comparisons, count, block, blocks, [&](const Compared<Stored>& pairs) {
      Real z[kSize];
#pragma unroll
      for (int i = 0; i < kSize; i++) z[i] = pairs.chosen[i] - pairs.rejected[i];
      losses.add(pairs.count, z);
      if (bins.words == nullptr) return;
#pragma unroll
      for (int i = 0; i < kSize; i++) {
        if (i >= pairs.count) break;
        const double slope = static_cast<double>(pair_slope(z[i]));
        add<Real>(bins, words, pairs.first[i], slope);
        add<Real>(bins, words, pairs.second[i], -slope);
      }
    });
    partial.terms = losses.value();
    finish_block<Real, false>(partial, divisor, outputs, partials, row, block, blocks);
  });
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, kBlocksOf<Stored>)
    general_indexed(Comparisons comparisons, Pairs options, Divisor divisor, ForwardOutputs outputs, Partial* partials,
                    int64_t blocks, Bins bins) {
  using Real = RealOf<Stored>;
  constexpr int kSize = kGroup<Real>;
  const Formula<Real> formula(options);
  const bool only_sum = is_sum_of_losses(formula, options);
  unsigned long long* const words = words_of(bins);
  for_parts(1, blocks, [&](int64_t row, int64_t block) {
    Partial partial = Partial::zero();
    ManyLosses losses;
    for_compared<Stored>(comparisons, options.count, block, blocks, [&](const Compared<Stored>& pairs) {
      Real margin[kSize], weight[kSize], target[kSize];
      load_optional<Stored>(options.margin, options.options.margin, 0, pairs.index, pairs.count, margin);
      load_optional<Stored, true>(options.weight, 1, 0, pairs.index, pairs.count, weight);
      load_optional<Stored>(options.target, options.options.target, 0, pairs.index, pairs.count, target);
      if (only_sum) {
        Real z[kSize];
#pragma unroll
        for (int i = 0; i < kSize; i++) z[i] = formula.logit(pairs.chosen[i], pairs.rejected[i], margin[i]);
        losses.add(pairs.count, z);
      }
#pragma unroll
      for (int i = 0; i < kSize; i++) {
        if (i >= pairs.count) break;
        const Real a = pairs.chosen[i], b = pairs.rejected[i];
        if (!only_sum) {
          partial.terms +=
              Formula<Real>::weighted(weight[i], formula.centered(formula.loss(a, b, margin[i], target[i]), a, b));
          partial.weight += static_cast<double>(weight[i]);
        }
        if (bins.words == nullptr || weight[i] == 0) continue;
        const PairGradient<Real> slope = formula.gradient(a, b, margin[i], Real(1), target[i], Scale<Real>());
        const double by = static_cast<double>(weight[i]);
        add<Real>(bins, words, pairs.first[i], by * static_cast<double>(slope.chosen));
        add<Real>(bins, words, pairs.second[i], by * static_cast<double>(slope.rejected));
      }
    });
    if (only_sum) partial.terms = losses.value();
    finish_block<Real, false>(partial, divisor, outputs, partials, row, block, blocks);
  });
}

// Each item's slope: what its words add up to, divided, and rounded once.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 2) divide_items(Bins bins, Divisor divisor, Real* slopes) {
  for_each(bins.items, [&](int64_t item) { slopes[item] = static_cast<Real>(sum_of(bins, item) / divisor.of_row(0)); });
}

// As many as the loss of gathered scores has, so that it has the same bits.
template <typename Real>
int64_t blocks_of(const Pairs& pairs) {
  return chunk_blocks<Real, true>(pairs.count);
}

// What the scratch memory holds, in float64: sums of blocks, the row's sums where they are divided by, the words.
struct Scratch {
  int64_t partials, sums, words;

  template <typename Real>
  static Scratch of(const Pairs& pairs, const Bins& bins, bool slopes) {
    const int64_t blocks = blocks_of<Real>(pairs);
    return {blocks == 1 ? 0 : blocks * static_cast<int64_t>(sizeof(Terms) / sizeof(double)),
            slopes && pairs.weight ? kSums : 0, slopes ? bins.copies * bins.of_copy() : 0};
  }
  int64_t size() const { return partials + sums + words; }
};

template <typename Stored>
cudaError_t forward(const Comparisons& comparisons, const Pairs& pairs, const Divisor& divisor, ForwardOutputs outputs,
                    void* slopes, const Launch& where) {
  using Real = RealOf<Stored>;
  Bins bins = bins_for<Real>(comparisons, pairs);
  const Scratch scratch = Scratch::of<Real>(pairs, bins, slopes != nullptr);
  auto* const partials = reinterpret_cast<Partial*>(where.scratch);
  if (scratch.sums > 0) outputs.sums = where.scratch + scratch.partials;
  if (scratch.words > 0) {
    bins.words = reinterpret_cast<unsigned long long*>(where.scratch + scratch.partials + scratch.sums);
    const cudaError_t status = cudaMemsetAsync(bins.words, 0, static_cast<size_t>(scratch.words) * sizeof(double),
                                               static_cast<cudaStream_t>(where.stream));
    if (status != cudaSuccess) return status;
  }
  const int64_t blocks = blocks_of<Real>(pairs);
  cudaError_t status = pairs.plain() ? launch(plain_indexed<Stored>, blocks, where, comparisons, pairs.count, divisor,
                                              outputs, partials, blocks, bins)
                                     : launch(general_indexed<Stored>, blocks, where, comparisons, pairs, divisor,
                                              outputs, partials, blocks, bins);
  status = finish<Real>(status, 1, blocks, divisor, outputs, where);
  if (status != cudaSuccess || slopes == nullptr) return status;
  const Divisor by = divisor.total_weight ? Divisor{1, outputs.sums + kWeight, 0, true} : divisor;
  return launch(divide_items<Real>, blocks_for(bins.items), where, bins, by, static_cast<Real*>(slopes));
}

template <typename Real>
int64_t scratch_of(const Comparisons& comparisons, const Pairs& pairs, bool slopes) {
  const Bins bins = bins_for<Real>(comparisons, pairs);
  return bins.bins == 0 ? -1 : Scratch::of<Real>(pairs, bins, slopes).size();
}

}  // namespace

int64_t indexed_scratch_size(const Comparisons& comparisons, const Pairs& pairs, bool slopes) {
  return comparisons.scores.dtype == Dtype::kFloat64 ? scratch_of<double>(comparisons, pairs, slopes)
                                                     : scratch_of<float>(comparisons, pairs, slopes);
}

int indexed_forward(const Comparisons& comparisons, const Pairs& pairs, const Divisor& divisor,
                    const ForwardOutputs& outputs, void* slopes, const Launch& where) {
  return with_stored(comparisons.scores.dtype, [&](auto* stored) {
    return forward<Pointee<decltype(stored)>>(comparisons, pairs, divisor, outputs, slopes, where);
  });
}

}  // namespace prefloss::cuda
