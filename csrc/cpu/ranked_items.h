// The items of a group in the order of their ranks.
#pragma once

#include <algorithm>
#include <vector>

#include "../groups.h"
#include "threads.h"

namespace prefloss::cpu {
namespace {

constexpr int kTile = 16;  // items that loops work on together

}  // namespace

namespace PREFLOSS_CPU_PATH {

// A group's items from best to worst, with room for whole tiles.
template <typename Real>
struct RankedItems {
  int size = 0;
  std::vector<int64_t> order;  // their places among all items
  std::vector<int> level_end;  // where the items of higher rank begin
  std::vector<Real> rewards, directions;
  std::vector<double> slopes;

  void take(const Groups& groups, int64_t group, int threads = 1) {
    const int64_t* const ranks = groups.ranks;
    const int64_t begin = groups.begin(group);
    make_room(static_cast<int>(groups.size_of(group)));
    const size_t count = static_cast<size_t>(size);
    order.resize(count);
    sort(ranks, begin);
    const Real* const given = static_cast<const Real*>(groups.rewards);
    for_items(threads, [&](size_t i) {
      rewards[i] = given[order[i]];
      const bool last = i + 1 == count || ranks[order[i]] < ranks[order[i + 1]];
      level_end[i] = last ? static_cast<int>(i) + 1 : 0;
    });
    for (size_t i = count; i-- > 0;) {
      if (level_end[i] == 0) level_end[i] = level_end[i + 1];
    }
  }

  // Each item's slope to its place among all.
  void write_slopes(Real* all, int threads = 1) const {
    for_items(threads, [&](size_t i) { all[order[i]] = static_cast<Real>(slopes[i]); });
  }

  // The items [begin, end) of another group.
  void copy_of(const RankedItems& all, int begin, int end) {
    make_room(end - begin);
    std::copy(all.rewards.begin() + begin, all.rewards.begin() + end, rewards.begin());
    for (int i = 0; i < size; i++)
      level_end[static_cast<size_t>(i)] = std::min(all.level_end[static_cast<size_t>(begin + i)], end) - begin;
  }

  // The items of another group at some ascending places.
  void copy_of(const RankedItems& all, const std::vector<int>& places) {
    make_room(static_cast<int>(places.size()));
    for (size_t i = places.size(); i-- > 0;) {
      const int end = all.level_end[static_cast<size_t>(places[i])];
      rewards[i] = all.rewards[static_cast<size_t>(places[i])];
      const bool last = i + 1 == places.size() || places[i + 1] >= end;
      level_end[i] = last ? static_cast<int>(i) + 1 : level_end[i + 1];
    }
  }

  // The first item of the rank of the item i.
  int level_begin(int i) const {
    return static_cast<int>(std::lower_bound(level_end.begin(), level_end.end(), level_end[static_cast<size_t>(i)]) -
                            level_end.begin());
  }

 private:
  template <typename Body>
  void for_items(int threads, const Body& body) const {
    constexpr int64_t kPart = 8192;
    for_chunks((size + kPart - 1) / kPart, threads, [&](int64_t part) {
      const size_t end = static_cast<size_t>(std::min<int64_t>(size, (part + 1) * kPart));
      for (size_t i = static_cast<size_t>(part * kPart); i < end; i++) body(i);
    });
  }

  void make_room(int items) {
    size = items;
    const size_t room = static_cast<size_t>((size + kTile - 1) / kTile * kTile);
    level_end.resize(static_cast<size_t>(size));
    rewards.assign(room, Real(0));
    slopes.assign(room, 0.0);
  }

  void sort(const int64_t* ranks, int64_t begin) {
    constexpr int kInsertion = 32, kDigits = 512;
    if (size >= kDigits) return sort_by_digits(ranks, begin);
    const int inserted = std::min(size, kInsertion);
    for (int i = 0; i < inserted; i++) {
      int place = i;
      for (; place > 0 && ranks[begin + i] < ranks[order[static_cast<size_t>(place - 1)]]; place--)
        order[static_cast<size_t>(place)] = order[static_cast<size_t>(place - 1)];
      order[static_cast<size_t>(place)] = begin + i;
    }
    if (size == inserted) return;
    for (int i = inserted; i < size; i++) order[static_cast<size_t>(i)] = begin + i;
    std::sort(order.begin(), order.end(),
              [=](int64_t a, int64_t b) { return ranks[a] != ranks[b] ? ranks[a] < ranks[b] : a < b; });
  }

  // Radix sort, least digit first: by the lower half of the keys, then by the upper one.
  void sort_by_digits(const int64_t* ranks, int64_t begin) {
    const auto [least, most] = std::minmax_element(ranks + begin, ranks + begin + size);
    const uint64_t from = static_cast<uint64_t>(*least), range = static_cast<uint64_t>(*most) - from;
    std::vector<uint64_t> entries(static_cast<size_t>(size)),
        more(static_cast<size_t>(size));  // half a key, and a place
    for (int i = 0; i < size; i++)
      entries[static_cast<size_t>(i)] =
          (static_cast<uint64_t>(ranks[begin + i]) - from) << 32 | static_cast<uint32_t>(i);
    sort_by_upper_half(entries, more, std::min(bits_in(range), 32));
    if (range >> 32 != 0) {
      for (uint64_t& entry : entries) {
        const uint32_t place = static_cast<uint32_t>(entry);
        entry = (static_cast<uint64_t>(ranks[begin + place]) - from) >> 32 << 32 | place;
      }
      sort_by_upper_half(entries, more, bits_in(range >> 32));
    }
    for (size_t i = 0; i < entries.size(); i++) order[i] = begin + static_cast<uint32_t>(entries[i]);
  }

  static int bits_in(uint64_t x) {
    int bits = 0;
    for (; x != 0; x >>= 1) bits++;
    return bits;
  }

  // By so many of the lower bits of the upper half. `more` is as large, for work.
  static void sort_by_upper_half(std::vector<uint64_t>& entries, std::vector<uint64_t>& more, int bits) {
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
};

}  // namespace PREFLOSS_CPU_PATH

using namespace PREFLOSS_CPU_PATH;

}  // namespace prefloss::cpu
