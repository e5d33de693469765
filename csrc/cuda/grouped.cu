// The loss over all pairs of each group on the GPU: forward, backward, double backward. Mirrors cpu/grouped.cpp, but
// visits the pairs one by one however large a group is.
//
// A thread has an item, and visits those of its group, or, in large groups, a part of them; a pair is visited by both
// of its items, and counted by the better one. What the items of a group counted is then added up (group_sums.cuh).
// There are no atomics, so the bits are the same from run to run. In long lists (long_list/) the items get all of that
// in linear time.
#include "../groups.h"
#include "../pair_math.h"
#include "blocks.cuh"
#include "columns.cuh"
#include "group_items.cuh"
#include "group_sums.cuh"
#include "long_list/long_list.h"

namespace prefloss::cuda {
namespace {

constexpr int kAddedInReal = 8;  // pairs that are added up in Real
constexpr int kSegment = 32;     // and in float64, before they go on: for fewer roundings of one sum

// Whether a group's items have it from elsewhere.
__device__ __forceinline__ bool is_done(const ListPlan* plans, int64_t group) {
  return plans != nullptr && plans[group].block != 0;
}

// Each item's slope, and the sums over the pairs that it counts: sum k of item i at counted[k * items + i]. `plans`:
// where there are long lists; the numbers of an item in one with a block are written by others.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 2)
    plain_items(Groups groups, const ListPlan* plans, int threads, double* slopes, double* counted) {
  constexpr int kSlope = kTerms + 1;
  const auto visit = [&](const Share& share, double* sums) {
    if (is_done(plans, share.group)) return;
    const Item<Real> item(groups, share.item);
    PairLossSum sum;
    int added = 0;
#pragma unroll 1
    for (int64_t first = share.begin; first < share.end; first += kAddedInReal) {
      LossProduct<Real> loss;
      Real its_slope = 0;
      int pairs = 0;
#pragma unroll 1
      for (int64_t other = first; other < first + kAddedInReal && other < share.end; other++) {
        const Item<Real> its(groups, other);
        const bool ahead = item.ahead_of(its);
        if (!ahead && !its.ahead_of(item)) continue;
        const Real z = ahead ? item.reward - its.reward : its.reward - item.reward;
        const Rounded<Real> e = exp_negative(absolute(z));
        its_slope += ahead ? -sigmoid(-z, e) : sigmoid(-z, e);
        if (!ahead) continue;
        loss.add(z, e);
        pairs += 1;
      }
      sums[kSlope] += static_cast<double>(its_slope);
      sums[kPairs] += pairs;
      if (added + kAddedInReal > PairLossSum::kMost) {
        sums[kTerms] += sum.value();
        sum = PairLossSum();
        added = 0;
      }
      sum.add_product(loss);
      added += kAddedInReal;
    }
    sums[kTerms] += sum.value();
  };
  const auto add = [](double* sums, const double* other) {
    for (int k = 0; k <= kSlope; k++) sums[k] += other[k];
  };
  for_items<kSlope + 1>(groups, threads, visit, add, [&](int64_t item, const double* sums) {
    slopes[item] = sums[kSlope];
    counted[kPairs * groups.items + item] = sums[kPairs];
    counted[kTerms * groups.items + item] = sums[kTerms];
  });
}

// With statistics an item has these two numbers beside: the sum of its losses, and its pairs in which it is the worse
// one. They are only there where a row has one group, which may be a list of two ranks.
constexpr int kOwnSums = 2;
__host__ __device__ __forceinline__ bool may_be_list(const Groups& groups) {
  return groups.groups == 1 && !groups.half_ties;
}

template <typename Real, bool kStatistics>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<kStatistics>)
    general_items(Groups groups, const ListPlan* plans, int threads, double* slopes, double* counted, double* own) {
  constexpr int kCounted = kItemSums<kStatistics>, kSlope = kCounted, kLosses = kSlope + 1, kWorse = kLosses + 1;
  constexpr int kAll = kStatistics ? kWorse + 1 : kSlope + 1;
  const bool by_item = kStatistics && may_be_list(groups);
  const PairOptions<Real> ranked(groups.options), equal(of_equal_rank(groups.options));
  const auto visit = [&](const Share& share, double* sums) {
    if (is_done(plans, share.group)) return;
    const Item<Real> item(groups, share.item);
    double segment = 0, losses = 0, worse = 0;
#pragma unroll 1
    for (int64_t other = share.begin; other < share.end; other++) {
      if ((other - share.begin) % kSegment == 0) sums[kSlope] += segment, segment = 0;
      const Item<Real> its(groups, other);
      const bool ahead = item.ahead_of(its), behind = its.ahead_of(item), tied = !ahead && !behind;
      if (tied && (!groups.half_ties || other == share.item)) continue;
      const PairOptions<Real>& options = tied ? equal : ranked;
      const Real a = behind ? its.reward : item.reward, b = behind ? item.reward : its.reward;
      const PairGradient<Real> gradient =
          options.formula.gradient(a, b, options.margin, Real(1), options.target, Scale<Real>());
      segment += static_cast<double>(behind ? gradient.rejected : gradient.chosen);
      if (behind && !by_item) continue;
      const double part = ahead ? 1.0 : 0.5;  // the other item counts the rest
      const Rounded<Real> rounded = options.formula.loss_and_remainder(a, b, options.margin, options.target);
      if (by_item) losses += static_cast<double>(rounded.value) + static_cast<double>(rounded.remainder);
      if (behind) {
        worse += 1;
        continue;
      }
      double pair[kCounted];
      pair[kPairs] = part;
      pair[kTerms] = part * static_cast<double>(options.formula.centered(rounded.value, a, b));
      if constexpr (kStatistics) {
        const double l = static_cast<double>(rounded.value) + static_cast<double>(rounded.remainder);
        const double d = a - b, x = a, y = b;
        pair[kPairLoss] = part * l;
        pair[kPairsCorrect] = a > b ? part : 0.0;
        pair[kPairsTied] = a == b ? part : 0.0;
        pair[kPairDifference] = tied ? d - d : d;  // the two orders of a tie add up to 0, or NaN
        pair[kPairDifferenceSquares] =
            tied ? part * (d * d) : d - d;  // what d alone differs from its mean by: 0, or NaN
        pair[kPairChosen] = part * x;
        pair[kPairChosenSquares] = x - x;
        pair[kPairRejected] = part * y;
        pair[kPairRejectedSquares] = y - y;
        pair[kPairMinimum] = HUGE_VAL;
        pair[kPairMaximum] = -HUGE_VAL;
      }
      add_group_sums<kStatistics>(sums, pair);
    }
    sums[kSlope] += segment;
    if constexpr (kStatistics) {
      sums[kPairMinimum] = sums[kPairMaximum] = item.reward;
      sums[kLosses] = losses;
      sums[kWorse] = worse;
    }
  };
  const auto add = [](double* sums, const double* other) {
    add_group_sums<kStatistics>(sums, other);
    for (int k = kSlope; k < kAll; k++) sums[k] += other[k];
  };
  for_items<kAll>(groups, threads, visit, add, [&](int64_t item, const double* sums) {
    if constexpr (kStatistics) {
      if (by_item) {
        own[item] = sums[kLosses];
        own[groups.items + item] = sums[kWorse];
      }
    }
    slopes[item] = sums[kSlope];
#pragma unroll
    for (int k = 0; k < kCounted; k++) counted[k * groups.items + item] = sums[k];
  });
}

__global__ void __launch_bounds__(kThreads, 2)
    divide_factors(Groups groups, Divisor divisor, const double* sums, double* factors) {
  for_each(groups.count(), [&](int64_t group) {
    const int64_t row = group / groups.groups;
    factors[group] /= divisor.total_weight ? divisor.resolve(sums[row * kSums + kWeight]) : divisor.of_row(row);
  });
}

// Each item's slope times its group's factor, rounded once.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 2)
    scale_slopes(Groups groups, const double* slopes, const double* factors, Real* scaled) {
  for_each(groups.items, [&](int64_t index) {
    const int64_t group = group_of(groups, index);
    const double factor = groups.is_filled(index, group) ? factors[group] : 0;
    scaled[index] = factor == 0 ? Real(0) : static_cast<Real>(factor * load_one(slopes + index));
  });
}

// An item's entry of a column of gradients.
template <typename Real>
__device__ __forceinline__ void store_entry(const Column& column, const Groups& groups, int64_t group, int64_t item,
                                            double value) {
  const int64_t row = groups.row_of(group), index = groups.in_row(item, row);
  const Real rounded = static_cast<Real>(value);
  if constexpr (sizeof(Real) == sizeof(double)) {
    *column.entry<double>(row, index) = rounded;
  } else {
    if (column.dtype == Dtype::kFloat32) narrow(rounded, *column.entry<float>(row, index));
    if (column.dtype == Dtype::kBFloat16) narrow(rounded, *column.entry<BFloat16>(row, index));
    if (column.dtype == Dtype::kFloat16) narrow(rounded, *column.entry<Float16>(row, index));
  }
}

template <typename Real>
__global__ void __launch_bounds__(kThreads, 2)
    backward_items(Groups groups, const Real* slopes, GroupUpstream upstream, Column result) {
  for_each(groups.items, [&](int64_t index) {
    const int64_t group = group_of(groups, index);
    const double slope = static_cast<double>(load_one(slopes + index));
    store_entry<Real>(result, groups, group, index, times_upstream(slope, upstream.of(groups, group)));
  });
}

// The derivatives by the rewards of the slopes' product with `direction`.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 2)
    double_backward_items(Groups groups, const double* factors, GroupUpstream upstream, const Real* direction,
                          Column gradient) {
  const PairOptions<Real> ranked(groups.options), equal(of_equal_rank(groups.options));
  for_each(groups.items, [&](int64_t index) {
    const int64_t group = group_of(groups, index), begin = groups.begin(group), end = begin + groups.size_of(group);
    const Item<Real> item(groups, index);
    const Real its_direction = load_one(direction + index);
    double total = 0;
#pragma unroll 1
    for (int64_t other = begin; other < end; other++) {
      const Item<Real> its(groups, other);
      const bool behind = its.ahead_of(item), tied = !behind && !item.ahead_of(its);
      if (tied && (!groups.half_ties || other == index)) continue;
      const Real a = behind ? its.reward : item.reward, b = behind ? item.reward : its.reward;
      const Real other_direction = load_one(direction + other);
      const auto second_of = [&](const PairOptions<Real>& options) {
        return options.formula
            .second(a, b, options.margin, Real(1), options.target, Scale<Real>(), Scale<Real>(),
                    behind ? other_direction : its_direction, behind ? its_direction : other_direction, Real(0))
            .gradient;
      };
      const PairGradient<Real> second = tied ? second_of(equal) : second_of(ranked);
      total += static_cast<double>(behind ? second.rejected : second.chosen);
    }
    const double factor = groups.is_filled(index, group) ? factors[group] : 0;
    store_entry<Real>(gradient, groups, group, index, factor == 0 ? 0 : factor * upstream.of(groups, group) * total);
  });
}

// For each group the sum of its slopes times `direction`, by a warp.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 2)
    add_products(Groups groups, const Real* slopes, const double* factors, const Real* direction, double* along) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int64_t group = blockIdx.x * int64_t{kWarps} + warp; group < groups.count();
       group += gridDim.x * int64_t{kWarps}) {
    const int64_t begin = groups.begin(group), end = factors[group] == 0 ? begin : begin + groups.size_of(group);
    double sum = 0;
#pragma unroll 1
    for (int64_t index = begin + lane; index < end; index += kWarp)
      sum += static_cast<double>(load_one(slopes + index)) * static_cast<double>(load_one(direction + index));
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
    if (lane == 0) along[group] = sum;
  }
}

// The numbers of all items, and the partial sums of rows.
int64_t visiting_size(const Groups& groups, bool statistics) {
  return groups.items * (group_sums(statistics) + 1 + (statistics ? kOwnSums : 0)) +
         groups.rows * summing_blocks(groups) * static_cast<int64_t>(sizeof(Partial) / sizeof(double));
}

template <typename Real>
cudaError_t forward(const Groups& groups, const GroupAverage& average, const GroupOutputs& outputs,
                    const Launch& where) {
  const bool is_plain = groups.options.are_off() && !groups.half_ties;
  const bool statistics = outputs.statistics;
  double* const slopes = where.scratch + groups.items * group_sums(statistics);
  double* const own = slopes + groups.items;
  double* const after = own + (statistics ? kOwnSums * groups.items : 0);
  const int threads = threads_an_item(groups);
  const int64_t item_blocks = blocks_for_items(groups, threads);
  const bool are_long = groups.order != nullptr;
  double* const lists = where.scratch + visiting_size(groups, statistics);
  const ListPlan* const plans = are_long ? plans_of(lists) : nullptr;
  cudaError_t status = are_long ? plan_long_lists(groups, lists, where) : cudaSuccess;
  if (status != cudaSuccess) return status;
  status = is_plain && !statistics
               ? launch(plain_items<Real>, item_blocks, where, groups, plans, threads, slopes, where.scratch)
               : launch(statistics ? general_items<Real, true> : general_items<Real, false>, item_blocks, where, groups,
                        plans, threads, slopes, where.scratch, own);
  if (status == cudaSuccess && are_long)
    status = visit_long_lists(groups, lists, slopes, where.scratch + kPairs * groups.items,
                              where.scratch + kTerms * groups.items, where);
  if (status != cudaSuccess) return status;
  const int64_t blocks = summing_blocks(groups);
  Partial* const partials = reinterpret_cast<Partial*>(after);
  status = launch_rows(statistics ? add_groups<Real, true> : add_groups<Real, false>, groups.rows, blocks, where,
                       groups, average, outputs, where.scratch, partials, blocks);
  const ForwardOutputs of_row{average.per_group ? nullptr : outputs.loss, {}, outputs.sums, statistics};
  status = finish<Real>(status, groups.rows, blocks, average.divisor, of_row, {where.stream, after});
  if (status == cudaSuccess && statistics && may_be_list(groups))
    status = launch_rows(add_lists, groups.rows, 1, where, groups, outputs.factors, where.scratch, own, outputs.sums);
  if (status == cudaSuccess && !average.per_group)
    status = launch(divide_factors, blocks_for(groups.count()), where, groups, average.divisor, outputs.sums,
                    outputs.factors);
  if (status != cudaSuccess || outputs.slopes == nullptr) return status;
  return launch(scale_slopes<Real>, blocks_for(groups.items), where, groups, slopes, outputs.factors,
                static_cast<Real*>(outputs.slopes));
}

template <typename Real>
cudaError_t backward(const Groups& groups, const void* slopes, const GroupUpstream& upstream, const Column& result,
                     const Launch& where) {
  return launch(backward_items<Real>, blocks_for(groups.items), where, groups, static_cast<const Real*>(slopes),
                upstream, result);
}

template <typename Real>
cudaError_t second(const Groups& groups, const void* slopes, const double* factors, const GroupUpstream& upstream,
                   const Column& direction, const Column& gradient, double* along, const Launch& where) {
  const Real* const towards = static_cast<const Real*>(direction.data);
  const cudaError_t status = launch(double_backward_items<Real>, blocks_for(groups.items), where, groups, factors,
                                    upstream, towards, gradient);
  if (status != cudaSuccess) return status;
  return launch(add_products<Real>, (groups.count() + kWarps - 1) / kWarps, where, groups,
                static_cast<const Real*>(slopes), factors, towards, along);
}

}  // namespace

int64_t grouped_scratch_size(const Groups& groups, bool statistics) {
  return visiting_size(groups, statistics) + (groups.order != nullptr ? long_lists_scratch_size(groups) : 0);
}

int grouped_forward(const Groups& groups, const GroupAverage& average, const GroupOutputs& outputs,
                    const Launch& where) {
  return groups.in_float64() ? forward<double>(groups, average, outputs, where)
                             : forward<float>(groups, average, outputs, where);
}

int grouped_backward(const Groups& groups, const void* slopes, const GroupUpstream& upstream, const Column& result,
                     const Launch& where) {
  return groups.in_float64() ? backward<double>(groups, slopes, upstream, result, where)
                             : backward<float>(groups, slopes, upstream, result, where);
}

int grouped_double_backward(const Groups& groups, const void* slopes, const double* factors,
                            const GroupUpstream& upstream, const Column& direction, const Column& gradient,
                            double* along, const Launch& where) {
  return groups.in_float64() ? second<double>(groups, slopes, factors, upstream, direction, gradient, along, where)
                             : second<float>(groups, slopes, factors, upstream, direction, gradient, along, where);
}

}  // namespace prefloss::cuda
