// All pairs of different rank of each group: forward, backward, double backward. Compiled once per instruction set, so
// everything here has internal linkage.
//
// Threads share groups, and the nodes of a long list's tree, each of which is one thread's; so the bits do not depend
// on their number.
#pragma once

#include <algorithm>
#include <vector>

#include "group_lanes.h"
#include "group_rows.h"
#include "large_group.h"

namespace prefloss::cpu {
namespace {

// Fewer pairs than this are done before a second thread would have started.
inline int useful_threads(const Groups& groups, int threads) {
  constexpr int64_t kParallelPairs = 32768;
  int64_t pairs = 0;
  for (int64_t g = 0; g < groups.count() && pairs < kParallelPairs; g++)
    pairs += groups.size_of(g) * (groups.size_of(g) - 1) / 2;
  return pairs < kParallelPairs ? 1 : threads;
}

// Calls body(items, group), its items taken, for every group, and writes their slopes.
template <typename Real, typename Body>
void for_groups(const Groups& groups, Real* slopes, int threads, const Body& body) {
  const int64_t count = groups.count(), parts = std::min<int64_t>(count, 64);
  for_chunks(parts, useful_threads(groups, threads), [&](int64_t part) {
    RankedItems<Real> items;
    for (int64_t group = part * count / parts; group < (part + 1) * count / parts; group++) {
      items.take(groups, group);
      body(items, group);
      items.write_slopes(slopes);
    }
  });
}

// The loss of a row from its groups' sums, and the factors of their slopes.
template <typename Real>
void finish_groups(const Groups& groups, const double* table, const GroupAverage& average, const GroupOutputs& outputs,
                   int64_t row) {
  Partial total = Partial::zero();
  Real* loss = static_cast<Real*>(outputs.loss);
  const int64_t begin = row * groups.groups, end = begin + groups.groups;
  for (int64_t g = begin; g < end; g++) {
    const double* group = table + g * group_sums(outputs.statistics);
    outputs.factors[g] = share_of(average, g, group[kPairs]);
    if (average.per_group) loss[g] = static_cast<Real>(group_loss(group, outputs.factors[g]));
    add_to_row(group, outputs.factors[g], outputs.statistics, total);
  }
  finish_row<Real>(total, average.divisor, {average.per_group ? nullptr : loss, {}, outputs.sums, outputs.statistics},
                   row);
  if (average.per_group) return;
  const double by = average.divisor.total_weight ? average.divisor.resolve(total.weight) : average.divisor.of_row(row);
  for (int64_t g = begin; g < end; g++) outputs.factors[g] /= by;
}

template <typename Real>
void forward_groups(const Groups& groups, const GroupOptions<Real>& options, const GroupOutputs& outputs, int64_t begin,
                    int64_t end, double* table, int threads) {
  Real* slopes = static_cast<Real*>(outputs.slopes);
  GroupsInLanes<Real> lanes;
  RankedItems<Real> items;
  const int stride = group_sums(outputs.statistics);
  double its_sums[kGroupSums];
  for (int64_t group = begin; group < end;) {
    double* sums = table + group * stride;
    if (options.plain && !options.half_ties && !outputs.statistics && group + kTile <= end &&
        fill_lanes(groups, group)) {
      lanes.forward(groups, group, slopes, sums);
      group += kTile;
      continue;
    }
    items.take(groups, group, threads);
    if (is_large(items, options))
      forward_large_group(items, options, outputs.statistics, its_sums, threads);
    else
      forward_group(items, options, outputs.statistics, its_sums);
    std::copy_n(its_sums, stride, sums);
    if (slopes) items.write_slopes(slopes, threads);
    group++;
  }
}

template <typename Real>
void grouped(const Groups& groups, const GroupAverage& average, const GroupOutputs& outputs, int threads) {
  const GroupOptions<Real> options(groups);
  const int64_t count = groups.count();
  // Shares of as many groups as there are lanes, if they are small; else of one.
  const int64_t unit = groups.items <= kMostInLane * count ? kTile : 1, units = (count + unit - 1) / unit,
                parts = std::min<int64_t>(units, 64);
  std::vector<double> table(static_cast<size_t>(count * group_sums(outputs.statistics)));
  for_chunks(parts, useful_threads(groups, threads), [&](int64_t part) {
    const int64_t begin = part * units / parts * unit, end = std::min(count, (part + 1) * units / parts * unit);
    forward_groups<Real>(groups, options, outputs, begin, end, table.data(), threads);
  });
  for (int64_t row = 0; row < groups.rows; row++) finish_groups<Real>(groups, table.data(), average, outputs, row);
}

// Each item's slope times its group's factor and the upstream gradient.
template <typename Real>
void scale_slopes(const Groups& groups, const Real* slopes, const double* factors, const GroupUpstream& upstream,
                  Real* result, int threads) {
  const int64_t count = groups.count(), parts = std::min<int64_t>(count, 64);
  for_chunks(parts, threads, [&](int64_t part) {
    for (int64_t group = part * count / parts; group < (part + 1) * count / parts; group++) {
      const double factor = factors[group] == 0 ? 0 : factors[group] * upstream.of<Real>(groups, group);
      const int64_t begin = groups.begin(group), end = begin + groups.size_of(group);
      for (int64_t i = begin; i < end; i++)
        result[i] = factors[group] == 0 ? Real(0) : static_cast<Real>(factor * static_cast<double>(slopes[i]));
    }
  });
}

// The derivatives by the rewards of the slopes' product with `direction`, both one Real an item.
template <typename Real>
void grouped_second(const Groups& groups, const Real* direction, Real* result, int threads) {
  const GroupOptions<Real> options(groups);
  for_groups<Real>(groups, result, threads, [&](RankedItems<Real>& items, int64_t) {
    items.directions.resize(items.order.size());
    for (size_t i = 0; i < items.order.size(); i++) items.directions[i] = direction[items.order[i]];
    for_ranges(items, options, [&](const Range& range, const PairOptions<Real>& pairs, bool) {
      const size_t i = static_cast<size_t>(range.i);
      const Real a = items.rewards[i], v = items.directions[i];
      const Real *others = items.rewards.data(), *directions = items.directions.data();
      double* slopes = items.slopes.data();
      double total = 0;
#pragma omp simd reduction(+ : total)
      for (int j = range.begin; j < range.end; j++) {
        const PairGradient<Real> second = pairs.formula
                                              .second(a, others[j], pairs.margin, Real(1), pairs.target, Scale<Real>(),
                                                      Scale<Real>(), v, directions[j], Real(0))
                                              .gradient;
        total += static_cast<double>(second.chosen);
        slopes[j] += static_cast<double>(second.rejected);
      }
      slopes[i] += total;
    });
  });
}

}  // namespace
}  // namespace prefloss::cpu
