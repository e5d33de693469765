// A group's items as the loops take them, and their order. Compiled once per instruction set, so everything here has
// internal linkage.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../groups.h"
#include "columns.h"
#include "ranked_items.h"
#include "threads.h"

namespace prefloss::cpu {
namespace {

// An integer as wide as Real: their comparisons fill the same vectors. Ranks are compared as such integers.
template <typename Real>
using IntegerLike = std::conditional_t<sizeof(Real) == sizeof(double), int64_t, int32_t>;

// Integers in the order of floats, equal where those are (0.0 turns -0.0 into 0).
inline int32_t order_of(float x) {
  const int32_t bits = static_cast<int32_t>(to_bits(x + 0.0f));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline int64_t order_of(double x) {
  const int64_t bits = static_cast<int64_t>(to_bits(x + 0.0));
  return bits ^ ((bits >> 63) & 0x7fffffffffffffff);
}

// The same order with fewer bits.
template <typename Entry>
void shorten(int count, const Entry& entry, int64_t* level) {
  for (int i = 0; i < count; i++) level[i] = entry(i);
}

template <typename Entry>
void shorten(int count, const Entry& entry, int32_t* level) {
  int64_t least = std::numeric_limits<int64_t>::max(), most = std::numeric_limits<int64_t>::min();
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int i = 0; i < count; i++) {
    const int64_t its = entry(i);
    least = its < least ? its : least;
    most = its > most ? its : most;
  }
  if (static_cast<uint64_t>(most) - static_cast<uint64_t>(least) <= 0x7fffffffu) {
    for (int i = 0; i < count; i++) level[i] = static_cast<int32_t>(entry(i) - least);
    return;
  }
  std::vector<int64_t> sorted(static_cast<size_t>(count));
  for (int i = 0; i < count; i++) sorted[static_cast<size_t>(i)] = entry(i);
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  for (int i = 0; i < count; i++)
    level[i] = static_cast<int32_t>(std::lower_bound(sorted.begin(), sorted.end(), entry(i)) - sorted.begin());
}

// Of ranks that are floats; false where one is NaN.
template <typename Stored, typename Integer>
bool order_floats(const Stored* ranks, int64_t stride, int count, Integer* level) {
  int nans = 0, inexact = 0;
  for (int i = 0; i < count; i++) {
    const auto rank = widen(ranks[i * stride]);
    const float nearest = static_cast<float>(rank);
    nans += rank != rank ? 1 : 0;
    inexact += nearest != rank ? 1 : 0;
    level[i] = order_of(nearest);
  }
  if (nans == 0 && inexact > 0)
    shorten(count, [=](int i) { return order_of(static_cast<double>(widen(ranks[i * stride]))); }, level);
  return nans == 0;
}

// The ranks of the items [begin, begin + count) of a row as integers in the same order. False where one is NaN.
template <typename Integer>
bool load_levels(const Column& ranks, int64_t row, int64_t begin, int count, Integer* level) {
  const int64_t stride = ranks.stride;
  const auto copy = [&](const auto* first) {
    for (int i = 0; i < count; i++) level[i] = static_cast<Integer>(first[i * stride]);
    return true;
  };
  switch (ranks.dtype) {
    case Dtype::kFloat64:
      return order_floats(ranks.entry<double>(row, begin), stride, count, level);
    case Dtype::kFloat32:
      return order_floats(ranks.entry<float>(row, begin), stride, count, level);
    case Dtype::kBFloat16:
      return order_floats(ranks.entry<BFloat16>(row, begin), stride, count, level);
    case Dtype::kFloat16:
      return order_floats(ranks.entry<Float16>(row, begin), stride, count, level);
    case Dtype::kBool:
    case Dtype::kUInt8:
      return copy(ranks.entry<uint8_t>(row, begin));
    case Dtype::kInt8:
      return copy(ranks.entry<int8_t>(row, begin));
    case Dtype::kInt16:
      return copy(ranks.entry<int16_t>(row, begin));
    case Dtype::kInt32:
      return copy(ranks.entry<int32_t>(row, begin));
    default: {
      const int64_t* const first = ranks.entry<int64_t>(row, begin);
      if (stride == 1)
        shorten(count, [=](int i) { return first[i]; }, level);
      else
        shorten(count, [=](int i) { return first[i * stride]; }, level);
      return true;
    }
  }
}

// The rewards of the items [begin, begin + count) of a row: in place where they are contiguous Real, else in `copy`.
template <typename Real>
const Real* load_rewards(const Column& rewards, int64_t row, int64_t begin, int count, Real* copy) {
  if (is_in_place<Real>(rewards)) return rewards.entry<Real>(row, begin);
  read_entries(rewards, row, begin, count, copy);
  return copy;
}

// Groups next to each other in one row, brought to contiguous memory.
template <typename Real>
struct LoadedItems {
  using Integer = IntegerLike<Real>;
  std::vector<Real> copy;
  std::vector<Integer> memory;
  const Real* rewards = nullptr;
  const Integer* levels = nullptr;

  // False where a rank is NaN.
  bool load(const Groups& groups, int64_t first, int64_t end) {
    const int64_t row = groups.row_of(first), begin = groups.in_row(groups.begin(first), row);
    const int size = static_cast<int>(groups.begin(end - 1) + groups.size_of(end - 1) - groups.begin(first));
    if (copy.size() < static_cast<size_t>(size) && !is_in_place<Real>(groups.rewards))
      copy.resize(static_cast<size_t>(size));
    if (memory.size() < static_cast<size_t>(size)) memory.resize(static_cast<size_t>(size));
    rewards = load_rewards(groups.rewards, row, begin, size, copy.data());
    levels = memory.data();
    return load_levels(groups.ranks, row, begin, size, memory.data());
  }
};

template <typename Real>
bool are_finite(const Real* rewards, int64_t size) {
  return std::all_of(rewards, rewards + size, [](Real x) { return x - x == 0; });
}

// How the items of a group are distributed over the ranks.
template <typename Integer>
struct Ranks {
  Integer least, most;
  int at_least = 0, at_most = 0;

  Ranks(const Integer* level, int count)
      : least(std::numeric_limits<Integer>::max()), most(std::numeric_limits<Integer>::min()) {
    Integer low = least, high = most, first = 0, last = 0;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int i = 0; i < count; i++) {
      low = level[i] < low ? level[i] : low;
      high = level[i] > high ? level[i] : high;
    }
#pragma omp simd reduction(+ : first, last)
    for (int i = 0; i < count; i++) {
      first += level[i] == low ? 1 : 0;
      last += level[i] == high ? 1 : 0;
    }
    least = low;
    most = high;
    at_least = static_cast<int>(first);
    at_most = static_cast<int>(last);
  }

  bool are_one() const { return least >= most; }
  bool are_two(int count) const { return !are_one() && at_least + at_most == count; }
  int fewer() const { return std::min(at_least, at_most); }
};

inline int bits_in(uint64_t x) {
  int bits = 0;
  for (; x != 0; x >>= 1) bits++;
  return bits;
}

// Radix sort, least digit first, by so many of the lower bits of the upper half. `more` is as large, for work.
inline void sort_by_upper_half(std::vector<uint64_t>& entries, std::vector<uint64_t>& more, int bits) {
  constexpr int kDigit = 11;
  for (int shift = 32; shift < 32 + bits; shift += kDigit) {
    int place[(1 << kDigit) + 1] = {};
    const auto digit = [=](uint64_t entry) { return static_cast<size_t>(entry >> shift) & ((1u << kDigit) - 1); };
    for (const uint64_t entry : entries) place[digit(entry) + 1]++;
    if (place[digit(entries[0]) + 1] == static_cast<int>(entries.size())) continue;  // one digit for all
    for (size_t d = 0; d < 1 << kDigit; d++) place[d + 1] += place[d];
    for (const uint64_t entry : entries) more[static_cast<size_t>(place[digit(entry)]++)] = entry;
    entries.swap(more);
  }
}

// By half a key, and a place, at a time.
template <typename Integer>
void sort_by_digits(const Integer* level, Integer least, Integer most, std::vector<int>& order) {
  const uint64_t from = static_cast<uint64_t>(least), range = static_cast<uint64_t>(most) - from;
  std::vector<uint64_t> entries(order.size()), more(order.size());
  for (size_t i = 0; i < order.size(); i++) entries[i] = (static_cast<uint64_t>(level[i]) - from) << 32 | i;
  sort_by_upper_half(entries, more, std::min(bits_in(range), 32));
  if (range >> 32 != 0) {
    for (uint64_t& entry : entries) {
      const uint32_t place = static_cast<uint32_t>(entry);
      entry = (static_cast<uint64_t>(level[place]) - from) >> 32 << 32 | place;
    }
    sort_by_upper_half(entries, more, bits_in(range >> 32));
  }
  for (size_t i = 0; i < entries.size(); i++) order[i] = static_cast<int>(static_cast<uint32_t>(entries[i]));
}

// So few different ranks that each is counted.
template <typename Integer>
void sort_by_counting(const Integer* level, Integer least, Integer most, std::vector<int>& order) {
  std::vector<int> place(static_cast<size_t>(most - least) + 2, 0);
  for (size_t i = 0; i < order.size(); i++) place[static_cast<size_t>(level[i] - least) + 1]++;
  for (size_t r = 1; r < place.size(); r++) place[r] += place[r - 1];
  for (size_t i = 0; i < order.size(); i++)
    order[static_cast<size_t>(place[static_cast<size_t>(level[i] - least)]++)] = static_cast<int>(i);
}

// The places of the items in the order of their levels, those of one level in their own.
template <typename Integer>
void sort(const Integer* level, const Ranks<Integer>& ranks, std::vector<int>& order) {
  constexpr int kInsertion = 32, kDigits = 512;
  const int size = static_cast<int>(order.size());
  int descents = 0;
  for (int i = 0; i + 1 < size; i++) descents += level[i] > level[i + 1] ? 1 : 0;
  if (descents == 0) {
    for (int i = 0; i < size; i++) order[static_cast<size_t>(i)] = i;
  } else if (size <= kInsertion) {
    for (int i = 0; i < size; i++) {
      int place = i;
      for (; place > 0 && level[i] < level[order[static_cast<size_t>(place - 1)]]; place--)
        order[static_cast<size_t>(place)] = order[static_cast<size_t>(place - 1)];
      order[static_cast<size_t>(place)] = i;
    }
  } else if (static_cast<uint64_t>(ranks.most) - static_cast<uint64_t>(ranks.least) <=
             2 * static_cast<uint64_t>(size)) {
    sort_by_counting(level, ranks.least, ranks.most, order);
  } else if (size >= kDigits) {
    sort_by_digits(level, ranks.least, ranks.most, order);
  } else {
    for (int i = 0; i < size; i++) order[static_cast<size_t>(i)] = i;
    std::sort(order.begin(), order.end(),
              [=](int a, int b) { return level[a] != level[b] ? level[a] < level[b] : a < b; });
  }
}

// Calls body(i) for every item.
template <typename Body>
void for_items(int size, int threads, const Body& body) {
  constexpr int64_t kPart = 8192;
  for_chunks((size + kPart - 1) / kPart, threads, [&](int64_t part) {
    const size_t end = static_cast<size_t>(std::min<int64_t>(size, (part + 1) * kPart));
    for (size_t i = static_cast<size_t>(part * kPart); i < end; i++) body(i);
  });
}

template <typename Real>
void put_in_order(const Real* rewards, const IntegerLike<Real>* level, int size, const Ranks<IntegerLike<Real>>& ranks,
                  int threads, RankedItems<Real>& items) {
  items.make_room(size);
  items.order.resize(static_cast<size_t>(size));
  sort(level, ranks, items.order);
  const size_t count = static_cast<size_t>(size);
  for_items(size, threads, [&](size_t i) {
    const int its = items.order[i];
    const bool last = i + 1 == count || level[its] < level[items.order[i + 1]];
    items.rewards[i] = rewards[its];
    items.level_end[i] = last ? static_cast<int>(i) + 1 : 0;
  });
  for (size_t i = count; i-- > 0;) {
    if (items.level_end[i] == 0) items.level_end[i] = items.level_end[i + 1];
  }
}

}  // namespace
}  // namespace prefloss::cpu
