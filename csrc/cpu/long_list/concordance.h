// How many pairs of a ranked group are in the right order, counted in K log K. Compiled once per instruction set, so
// everything here has internal linkage.
#pragma once

#include <algorithm>
#include <vector>

#include "../threads.h"

namespace prefloss::cpu {
namespace {

// Sorted runs of items, next to each other, merged: counts the pairs of an item and a smaller one in a later run.
template <typename Real>
int64_t merge_runs(const Real* begin, const Real* middle, const Real* end, Real* merged) {
  int64_t larger_before = 0;
  const Real *left = begin, *right = middle;
  while (left < middle && right < end) {
    const bool from_right = *right < *left;
    *merged++ = from_right ? *right : *left;
    larger_before += from_right ? middle - left : 0;
    right += from_right ? 1 : 0;
    left += from_right ? 0 : 1;
  }
  std::copy(right, end, std::copy(left, middle, merged));
  return larger_before;
}

// Sorts, and counts the pairs of an item and a smaller one behind it. `work` is as large.
template <typename Real>
int64_t sort_and_count(Real* begin, Real* end, Real* work) {
  constexpr int64_t kInsertion = 16;
  int64_t count = 0;
  const int64_t size = end - begin;
  if (size <= kInsertion) {
    for (int64_t i = 1; i < size; i++) {
      const Real its = begin[i];
      int64_t place = i;
      for (; place > 0 && its < begin[place - 1]; place--) begin[place] = begin[place - 1];
      begin[place] = its;
      count += i - place;
    }
    return count;
  }
  Real* middle = begin + size / 2;
  count += sort_and_count(begin, middle, work) + sort_and_count(middle, end, work + size / 2);
  count += merge_runs(begin, middle, end, work);
  std::copy(work, work + size, begin);
  return count;
}

// Pairs of equal numbers, of a sorted range.
template <typename Real>
int64_t equal_pairs(const Real* begin, const Real* end) {
  int64_t pairs = 0;
  for (const Real* x = begin; x < end;) {
    const Real* next = std::upper_bound(x, end, *x);
    pairs += (next - x) * (next - x - 1) / 2;
    x = next;
  }
  return pairs;
}

// Pairs of different rank: in the right order, and of equal reward; and those of equal rank and equal reward.
struct Concordance {
  int64_t correct = 0, equal = 0, equal_in_ranks = 0;
};

// `rewards` from the best rank to the worst, where each rank ends; no NaN. The rewards are sorted.
template <typename Real>
Concordance concordance(std::vector<Real>& rewards, const std::vector<size_t>& ends, int threads) {
  constexpr int64_t kParts = 16;  // a power of two
  Concordance result;
  size_t begin = 0;
  for (const size_t end : ends) {  // in ascending order, no pair of one rank is an item and a smaller one behind it
    std::sort(&rewards[begin], rewards.data() + end);
    result.equal_in_ranks += equal_pairs(&rewards[begin], rewards.data() + end);
    begin = end;
  }
  std::vector<Real> work(rewards.size());
  const int64_t size = static_cast<int64_t>(rewards.size());
  const auto at = [&](int64_t part) { return part * size / kParts; };
  int64_t counts[kParts] = {};
  for_chunks(kParts, threads, [&](int64_t part) {
    counts[part] = sort_and_count(rewards.data() + at(part), rewards.data() + at(part + 1), work.data() + at(part));
  });
  for (int64_t run = 1; run < kParts; run *= 2) {
    for_chunks(kParts / (2 * run), threads, [&](int64_t pair) {
      const int64_t first = 2 * run * pair;
      counts[first] += merge_runs(rewards.data() + at(first), rewards.data() + at(first + run),
                                  rewards.data() + at(first + 2 * run), work.data() + at(first));
    });
    rewards.swap(work);
  }
  for (const int64_t count : counts) result.correct += count;
  result.equal = equal_pairs(rewards.data(), rewards.data() + size) - result.equal_in_ranks;
  return result;
}

}  // namespace
}  // namespace prefloss::cpu
