// All pairs of different rank of each group: forward, backward, double backward, and both derivatives without a loss.
// Compiled once per instruction set.
//
// Threads share groups; a group with a large part of all items is done by all threads alone. So the bits do not depend
// on their number.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "group_pass.h"

namespace prefloss::cpu {
namespace {

// Memory that nobody has written: on the stack where it is small.
template <typename Value, size_t kSmall>
class Memory {
 public:
  explicit Memory(int64_t size)
      : large_(static_cast<size_t>(size) > kSmall ? new Value[static_cast<size_t>(size)] : nullptr) {}
  Value* data() { return large_ ? large_.get() : small_; }

 private:
  Value small_[kSmall];
  std::unique_ptr<Value[]> large_;
};

int useful_threads(const Groups& groups, int threads) {
  int64_t pairs = 0;
  for (int64_t g = 0; threads > 1 && g < groups.count() && pairs < kParallelPairs; g++)
    pairs += groups.size_of(g) * (groups.size_of(g) - 1) / 2;
  return pairs < kParallelPairs ? 1 : threads;
}

// Calls body(begin, end) for parts of all groups. Where groups are small, those that may share lanes stay together.
template <typename Body>
void for_parts(const Groups& groups, int threads, const Body& body) {
  const int64_t count = groups.count(), unit = groups.items <= kMostInLane * count ? kTile : 1,
                units = (count + unit - 1) / unit, parts = std::min<int64_t>(units, 64);
  if (threads == 1 && unit == kTile && count > 0) return body(0, count);
  for_chunks(parts, threads, [&](int64_t part) {
    body(part * units / parts * unit, std::min(count, (part + 1) * units / parts * unit));
  });
}

// The loss of a row from its groups' sums, and the factors of their slopes.
template <typename Real>
void finish_groups(const Groups& groups, const double* table, const GroupAverage& average, const GroupOutputs& outputs,
                   const double* lists, int64_t row, double* factors) {
  Partial total = Partial::zero();
  Real* loss = static_cast<Real*>(outputs.loss);
  const int64_t begin = row * groups.groups, end = begin + groups.groups;
  for (int64_t g = begin; g < end; g++) {
    const double* group = table + g * group_sums(outputs.statistics);
    factors[g] = share_of(average, groups, g, group[kPairs]);
    if (average.per_group) loss[g] = static_cast<Real>(group_loss(group, factors[g]));
    add_to_row(group, factors[g], outputs.statistics, total);
  }
  finish_row<Real>(total, average.divisor, {average.per_group ? nullptr : loss, {}, outputs.sums, outputs.statistics},
                   row);
  if (lists && factors[row] != 0)
    std::copy_n(lists + kListSums * row, kListSums, outputs.sums + row * kSums + kListVariance);
  if (average.per_group) return;
  const double by = average.divisor.total_weight ? average.divisor.resolve(total.weight) : average.divisor.of_row(row);
  for (int64_t g = begin; g < end; g++) factors[g] /= by;
}

// Where groups of few ranks may take them, else nullptr.
template <typename Real>
std::unique_ptr<const CellsOfCall> cells_of(const Groups& groups, const GroupOptions<Real>& options) {
  if (std::is_same_v<Real, double> || groups.items < kManyItems || !options.is_softplus()) return nullptr;
  return std::make_unique<const CellsOfCall>(options.ranked);
}

// The pass over the pairs of all groups, which share the threads. False where a rank is NaN.
template <typename Real>
bool visit_groups(const Groups& groups, const GroupOptions<Real>& options, bool statistics, const GroupResults& results,
                  int threads) {
  // With one chunk the threads are all its own.
  const auto is_alone = [&](int64_t group) {
    return threads > 1 && groups.size_of(group) > kMostInLane && 2 * threads * groups.size_of(group) >= groups.items;
  };
  const auto cells = statistics ? nullptr : cells_of(groups, options);
  std::atomic<bool> nan{false};
  const auto run = [&](int64_t begin, int64_t end, int its_threads, const auto& wanted) {
    GroupsForward<Real> part(groups, options, statistics, results, cells.get());
    if (!nan && !part.run(begin, end, its_threads, wanted)) nan = true;
  };
  for (int64_t g = 0; threads > 1 && g < groups.count(); g++) {
    if (is_alone(g)) run(g, g + 1, threads, is_alone);
  }
  for_parts(groups, threads,
            [&](int64_t begin, int64_t end) { run(begin, end, 1, [&](int64_t group) { return !is_alone(group); }); });
  return !nan;
}

// Each slope times the factor of its group: exactly 0 in a group that counts nothing, and where there is no item.
template <typename Result>
void scale_groups(const Groups& groups, const double* factors, const double* slopes, Result* scaled, int threads) {
  for_parts(groups, groups.items < kParallelPairs ? 1 : threads, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++) {
      const int64_t first = groups.begin(g), last = first + groups.size_of(g);
      const double factor = factors[g];
      if (factor == 0)
        std::fill(scaled + first, scaled + last, Result(0));
      else
        for (int64_t i = first; i < last; i++) scaled[i] = static_cast<Result>(factor * slopes[i]);
      std::fill(scaled + last, scaled + first + groups.places_of(g), Result(0));
    }
  });
}

template <typename Real>
GroupStatus forward(const Groups& groups, const GroupAverage& average, const GroupOutputs& outputs, int threads) {
  const GroupOptions<Real> options(groups);
  const int64_t count = groups.count();
  Memory<double, 256> table(count * group_sums(outputs.statistics)), own_factors(outputs.factors ? 0 : count);
  Memory<double, 2048> slopes(groups.items);
  double* const factors = outputs.factors ? outputs.factors : own_factors.data();
  std::vector<double> lists(outputs.statistics && groups.groups == 1 ? static_cast<size_t>(kListSums * count) : 0);
  double* const of_lists = lists.empty() ? nullptr : lists.data();
  threads = useful_threads(groups, threads);
  if (!visit_groups(groups, options, outputs.statistics, {table.data(), slopes.data(), nullptr, of_lists}, threads))
    return GroupStatus::kNanRank;
  for (int64_t row = 0; row < groups.rows; row++)
    finish_groups<Real>(groups, table.data(), average, outputs, of_lists, row, factors);
  if (outputs.slopes) scale_groups(groups, factors, slopes.data(), static_cast<Real*>(outputs.slopes), threads);
  return GroupStatus::kDone;
}

// Of one row, and of one loss for all groups.
template <typename Real>
GroupStatus derivatives(const Groups& groups, const GroupAverage& average, double* gradient, double* curvatures,
                        int threads) {
  std::vector<double> table(static_cast<size_t>(groups.count() * group_sums(false))),
      factors(static_cast<size_t>(groups.count()));
  threads = useful_threads(groups, threads);
  const GroupOptions<Real> options(groups);
  if (!visit_groups(groups, options, false, {table.data(), gradient, curvatures, nullptr}, threads))
    return GroupStatus::kNanRank;
  Real loss = 0;
  GroupOutputs outputs;
  outputs.loss = &loss;
  finish_groups<Real>(groups, table.data(), average, outputs, nullptr, 0, factors.data());
  scale_groups(groups, factors.data(), gradient, gradient, threads);
  scale_groups(groups, factors.data(), curvatures, curvatures, threads);
  return GroupStatus::kDone;
}

// Writes value(i) for each item i of a group, a block at a time, and 0 where there are no items.
template <typename Real, typename Value>
void write_group(const Groups& groups, int64_t group, const Column& result, const Value& value) {
  const int64_t row = groups.row_of(group), first = groups.in_row(groups.begin(group), row),
                size = groups.size_of(group), places = groups.places_of(group);
  Buffer<Real> buffer;
  for (int64_t begin = 0; begin < places; begin += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, places - begin)),
              there = static_cast<int>(std::clamp<int64_t>(size - begin, 0, count));
    for (int i = 0; i < there; i++) buffer.values[i] = static_cast<Real>(value(begin + i));
    std::fill(buffer.values + there, buffer.values + count, Real(0));
    write_entries(buffer.values, result, row, first + begin, count);
  }
}

template <typename Real>
void backward(const Groups& groups, const Real* slopes, const GroupUpstream& upstream, const Column& result,
              int threads) {
  for_parts(groups, threads, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++) {
      const double factor = upstream.of(groups, g);
      const Real* const its = slopes + groups.begin(g);
      write_group<Real>(groups, g, result,
                        [=](int64_t i) { return times_upstream(static_cast<double>(its[i]), factor); });
    }
  });
}

// The products of groups' second derivatives with a direction.
template <typename Real>
class SecondDerivatives {
 public:
  SecondDerivatives(const Groups& groups, const GroupOptions<Real>& options, const CellsOfCall* cells)
      : groups_(groups), options_(options), cells_(cells) {}

  // Of one group, unscaled, one an item. False where a rank is NaN.
  bool multiply(int64_t group, const Real* direction, int threads, std::vector<double>& product) {
    const int size = static_cast<int>(groups_.size_of(group));
    if (!loaded_.load(groups_, group, group + 1)) return false;
    const Ranks<IntegerLike<Real>> ranks(loaded_.levels, size);
    product.resize(static_cast<size_t>(size));
    if constexpr (std::is_same_v<Real, float>) {
      if (cells_ && few_cells_.load(*cells_, loaded_.rewards, loaded_.levels, size, ranks, true)) {
        few_cells_.multiply(direction, product.data(), threads);
        return true;
      }
    }
    put_in_order(loaded_.rewards, loaded_.levels, size, ranks, threads, items_);
    if (!is_long(items_, options_) || !are_finite(items_.rewards.data(), size)) {
      bend(items_, options_, direction);
    } else {
      double sums[kGroupSums];
      items_.curvatures.assign(product.size(), 0.0);
      items_.directions.resize(product.size());
      for (size_t i = 0; i < product.size(); i++)
        items_.directions[i] = static_cast<double>(direction[items_.order[i]]);
      forward_long_list(items_, groups_, false, sums, threads);
    }
    for (size_t i = 0; i < product.size(); i++) product[static_cast<size_t>(items_.order[i])] = items_.slopes[i];
    return true;
  }

 private:
  const Groups& groups_;
  const GroupOptions<Real>& options_;
  const CellsOfCall* cells_;
  FewCells few_cells_;
  LoadedItems<Real> loaded_;
  RankedItems<Real> items_;
};

template <typename Real>
GroupStatus double_backward(const Groups& groups, const Real* slopes, const double* factors,
                            const GroupUpstream& upstream, const Column& direction, const Column& gradient,
                            double* along, int threads) {
  const GroupOptions<Real> options(groups);
  const auto cells = cells_of(groups, options);
  std::atomic<bool> nan{false};
  threads = useful_threads(groups, threads);
  const int its_threads = groups.count() == 1 ? threads : 1;  // with one chunk the threads are all its own
  for_parts(groups, threads, [&](int64_t begin, int64_t end) {
    SecondDerivatives<Real> second(groups, options, cells.get());
    std::vector<Real> copy;
    std::vector<double> bent;
    for (int64_t g = begin; g < end && !nan; g++) {
      const int size = static_cast<int>(groups.size_of(g));
      const int64_t row = groups.row_of(g), first = groups.in_row(groups.begin(g), row);
      copy.resize(static_cast<size_t>(size));
      const Real* const its = load_rewards(direction, row, first, size, copy.data());
      double product = 0;
      for (int i = 0; i < size && factors[g] != 0; i++)
        product += static_cast<double>(slopes[groups.begin(g) + i]) * static_cast<double>(its[i]);
      along[g] = product;
      if (!second.multiply(g, its, its_threads, bent)) {
        nan = true;
        return;
      }
      const double factor = factors[g] == 0 ? 0 : factors[g] * upstream.of(groups, g);
      write_group<Real>(groups, g, gradient,
                        [&](int64_t i) { return factors[g] == 0 ? 0.0 : factor * bent[static_cast<size_t>(i)]; });
    }
  });
  return nan ? GroupStatus::kNanRank : GroupStatus::kDone;
}

}  // namespace

namespace PREFLOSS_CPU_PATH {

GroupStatus grouped_forward(const Groups& groups, const GroupAverage& average, const GroupOutputs& outputs,
                            int threads) {
  return groups.in_float64() ? forward<double>(groups, average, outputs, threads)
                             : forward<float>(groups, average, outputs, threads);
}

void grouped_backward(const Groups& groups, const void* slopes, const GroupUpstream& upstream, const Column& result,
                      int threads) {
  groups.in_float64() ? backward(groups, static_cast<const double*>(slopes), upstream, result, threads)
                      : backward(groups, static_cast<const float*>(slopes), upstream, result, threads);
}

GroupStatus grouped_double_backward(const Groups& groups, const void* slopes, const double* factors,
                                    const GroupUpstream& upstream, const Column& direction, const Column& gradient,
                                    double* along, int threads) {
  return groups.in_float64() ? double_backward(groups, static_cast<const double*>(slopes), factors, upstream, direction,
                                               gradient, along, threads)
                             : double_backward(groups, static_cast<const float*>(slopes), factors, upstream, direction,
                                               gradient, along, threads);
}

GroupStatus grouped_derivatives(const Groups& groups, const GroupAverage& average, double* gradient, double* curvatures,
                                int threads) {
  return groups.in_float64() ? derivatives<double>(groups, average, gradient, curvatures, threads)
                             : derivatives<float>(groups, average, gradient, curvatures, threads);
}

}  // namespace PREFLOSS_CPU_PATH
}  // namespace prefloss::cpu
