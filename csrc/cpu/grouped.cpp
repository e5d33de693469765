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

#include "group_few.h"
#include "group_lanes.h"
#include "group_products.h"
#include "group_rows.h"
#include "instruction_set.h"

namespace prefloss::cpu {
namespace {

constexpr int kMostInLane = 128;  // larger groups fill loops by themselves

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

// Scores beyond this, of float64 alone, would overflow when they are squared.
constexpr double kGreatest = 1e150;

// Where scores lie further apart than this, lists of less than twice as many items as `large` are done pair by pair, if
// they do not meet by score: cells with one item each cost more than they save. In float64 cells are narrower.
template <typename Real>
constexpr double kFarApart = sizeof(Real) == sizeof(double) ? 40 : 650;

// Whether a list takes linear time. Its cells need finite numbers.
template <typename Real>
bool is_long(const RankedItems<Real>& items, const GroupOptions<Real>& options) {
  const double beta = std::abs(static_cast<double>(options.ranked.formula.beta)),
               margin = std::abs(static_cast<double>(options.ranked.margin)), most = kGreatest / std::max(1.0, beta);
  if (items.size < options.large || !(beta < kGreatest && std::isfinite(margin))) return false;
  double low = HUGE_VAL, high = -HUGE_VAL;  // of the finite ones
  for (size_t i = 0; i < static_cast<size_t>(items.size); i++) {
    const double reward = static_cast<double>(items.rewards[i]), finite = reward - reward == 0 ? reward : 0.0;
    low = std::min(low, finite);
    high = std::max(high, finite);
  }
  if (std::max(-low, high) > most) return false;
  return items.size >= 2 * options.large || beta * (high - low) + margin <= kFarApart<Real> ||
         are_met_by_score(items, options);
}

// Whether a list's second derivatives take linear time too.
template <typename Real>
bool are_finite(const Real* rewards, int64_t size) {
  return std::all_of(rewards, rewards + size, [](Real x) { return x - x == 0; });
}

// What the pass over the pairs finds, unscaled. `table`: the sums of each group. `slopes`, and `curvatures` where they
// are wanted: the first and the second derivatives of its kTerms by each reward. `lists`: where `set_list` writes,
// where rows have one group each; else nullptr.
struct GroupResults {
  double *table = nullptr, *slopes = nullptr, *curvatures = nullptr, *lists = nullptr;
};

// The pass over the pairs of some of the groups.
template <typename Real>
class GroupsForward {
  using Integer = IntegerLike<Real>;

 public:
  GroupsForward(const Groups& groups, const GroupOptions<Real>& options, bool statistics, const GroupResults& results)
      : groups_(groups),
        options_(options),
        statistics_(statistics),
        stride_(group_sums(statistics)),
        results_(results) {}

  // The groups [begin, end) for which wanted(group) holds. False where a rank is NaN.
  template <typename Wanted>
  bool run(int64_t begin, int64_t end, int threads, const Wanted& wanted) {
    for (int64_t group = begin; group < end;) {
      if (!wanted(group)) {
        group++;
        continue;
      }
      const int64_t many = small_groups(group, end);
      if (!items_.load(groups_, group, group + many)) return false;
      if (!in_lanes(group, many)) {
        for (int64_t g = group; g < group + many; g++) alone(g, groups_.begin(g) - groups_.begin(group), threads);
      }
      group += many;
    }
    return true;
  }

 private:
  const Groups& groups_;
  const GroupOptions<Real>& options_;
  bool statistics_;
  int stride_;
  GroupResults results_;
  LoadedItems<Real> items_;
  RankedItems<Real> ranked_;
  GroupsInLanes<Real, kMostInLane> lanes_;
  ProductsInLanes<kMostInLane> products_;

  // How many groups from here on, of one row, may share the lanes: at least this one. The same for any number of
  // threads.
  int64_t small_groups(int64_t group, int64_t end) const {
    end = std::min({end, (group / kTile + 1) * kTile, (groups_.row_of(group) + 1) * groups_.groups});
    int64_t next = group;
    while (next < end && groups_.size_of(next) <= kMostInLane) next++;
    return std::max(next, group + 1) - group;
  }

  // Whether these groups together take fewer steps than one after another; then they are done.
  bool in_lanes(int64_t first, int64_t many) {
    if (statistics_ || results_.curvatures || many == 1) return false;
    int64_t largest = 0, squares = 0;
    for (int64_t g = first; g < first + many; g++) {
      largest = std::max(largest, groups_.size_of(g));
      squares += groups_.size_of(g) * groups_.size_of(g);
    }
    const int64_t steps = largest * (largest - 1) / 2;
    if (largest > kTile) {
      int64_t alone = 0;
      for (int64_t g = first; g < first + many && alone < steps; g++)
        alone += steps_alone(g, groups_.begin(g) - groups_.begin(first));
      if (alone < steps) return false;
    } else if (squares < 2 * steps) {  // one that is alone takes a step an item, and one tile is hardly filled
      return false;
    }
    if constexpr (std::is_same_v<Real, float>) {
      if (options_.is_softplus()) {
        products_.clear(static_cast<int>(largest), options_);
        if (put_in(products_, first, many)) {
          products_.add_pairs();
          take_from(products_, first, many);
          return true;
        }
      }
    }
    lanes_.clear(static_cast<int>(largest));
    put_in(lanes_, first, many);
    lanes_.add_pairs(options_);
    take_from(lanes_, first, many);
    return true;
  }

  // Puts groups into lanes. False where they cannot take one of them.
  template <typename GroupsInIts>
  bool put_in(GroupsInIts& lanes, int64_t first, int64_t many) {
    bool fits = true;
    for (int64_t lane = 0; lane < many && fits; lane++) {
      const int64_t from = groups_.begin(first + lane) - groups_.begin(first);
      fits = lanes.put(static_cast<int>(lane), items_.rewards + from, items_.levels + from,
                       static_cast<int>(groups_.size_of(first + lane)));
    }
    return fits;
  }

  template <typename GroupsInIts>
  void take_from(const GroupsInIts& lanes, int64_t first, int64_t many) {
    for (int64_t lane = 0; lane < many; lane++) {
      double* const sums = results_.table + (first + lane) * stride_;
      sums[kPairs] = lanes.pairs[lane];
      sums[kTerms] = lanes.terms[lane];
      double* const slopes = results_.slopes + groups_.begin(first + lane);
      for (int64_t i = 0; i < groups_.size_of(first + lane); i++) slopes[i] = lanes.slopes[i][lane];
    }
  }

  // Of kTile pairs each.
  int64_t steps_alone(int64_t group, int64_t from) const {
    const int64_t size = groups_.size_of(group);
    const Ranks<Integer> ranks(items_.levels + from, static_cast<int>(size));
    if (ranks.are_one() && !options_.half_ties) return 0;
    const int64_t rows = are_few(ranks, size) && !options_.half_ties ? ranks.fewer() : size / 2 + 8;
    return rows * (size / kTile + 1);
  }

  void alone(int64_t group, int64_t from, int threads) {
    const int size = static_cast<int>(groups_.size_of(group));
    const Real* const rewards = items_.rewards + from;
    const Integer* const levels = items_.levels + from;
    double *const sums = results_.table + group * stride_, *const slopes = results_.slopes + groups_.begin(group);
    const Ranks<Integer> ranks(levels, size);
    if (ranks.are_one() && !options_.half_ties) {
      std::fill_n(sums, stride_, 0.0);
      return;
    }
    if (!statistics_ && !results_.curvatures && !options_.half_ties && are_few(ranks, size)) {
      sums[kPairs] = static_cast<double>(ranks.at_least) * static_cast<double>(ranks.at_most);
      sums[kTerms] = FewItems<Real>(options_, rewards, levels, size, ranks).forward(slopes, threads);
      return;
    }
    double all_sums[kGroupSums];
    put_in_order(rewards, levels, size, ranks, threads, ranked_);
    const bool by_item = results_.lists && ranks.are_two(size) && !options_.half_ties;
    if (by_item) ranked_.losses.assign(static_cast<size_t>(size), 0.0);
    const bool second = results_.curvatures != nullptr;
    if (second) ranked_.curvatures.assign(static_cast<size_t>(size), 0.0);
    if (is_long(ranked_, options_) && (!second || are_finite(rewards, size)))
      forward_long_list(ranked_, groups_, statistics_, all_sums, threads);
    else
      visit_pairs(all_sums);
    std::copy_n(all_sums, stride_, sums);
    if (by_item) set_list_of(results_.lists + kListSums * group);
    for_items(size, threads, [&](size_t i) { slopes[ranked_.order[i]] = ranked_.slopes[i]; });
    if (!results_.curvatures) return;
    double* const curvatures = results_.curvatures + groups_.begin(group);
    for_items(size, threads, [&](size_t i) { curvatures[ranked_.order[i]] = ranked_.curvatures[i]; });
  }

  // Each pair of the ranked items; second derivatives come without the sum of the terms.
  void visit_pairs(double* sums) {
    double terms = 0;
    bool done = false;
    if constexpr (std::is_same_v<Real, float>) done = forward_leaf(ranked_, groups_, terms);
    if (!done && results_.curvatures)
      add_derivatives(ranked_, options_);
    else if (!done)
      terms = add_slopes(ranked_, options_);
    add_sums(ranked_, options_, statistics_, sums);
    sums[kTerms] = terms;
  }

  // Of the items' losses, each of the better ones with each of the worse.
  void set_list_of(double* list) const {
    const int better = ranked_.level_end[0], worse = ranked_.size - better;
    const auto squares = [&](int begin, int end, int others) {
      return moments(begin, end, [&](int i) { return ranked_.losses[static_cast<size_t>(i)] / others; }).squares;
    };
    set_list(better, squares(0, better, worse), worse, squares(better, ranked_.size, better), list);
  }
};

// Fewer pairs than this are done before a second thread would have started.
int useful_threads(const Groups& groups, int threads) {
  constexpr int64_t kParallelPairs = 32768;
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

// The pass over the pairs of all groups, which share the threads. False where a rank is NaN.
template <typename Real>
bool visit_groups(const Groups& groups, const GroupOptions<Real>& options, bool statistics, const GroupResults& results,
                  int threads) {
  // With one chunk the threads are all its own.
  const auto is_alone = [&](int64_t group) {
    return threads > 1 && groups.size_of(group) > kMostInLane && 2 * threads * groups.size_of(group) >= groups.items;
  };
  std::atomic<bool> nan{false};
  const auto run = [&](int64_t begin, int64_t end, int its_threads, const auto& wanted) {
    GroupsForward<Real> part(groups, options, statistics, results);
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
  for_parts(groups, threads, [&](int64_t begin, int64_t end) {
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

// The product of a group's second derivatives with `direction`, in the items' order: their slopes become that.
template <typename Real>
void multiply(RankedItems<Real>& items, const Groups& groups, const GroupOptions<Real>& options, const Real* direction,
              int threads) {
  if (!is_long(items, options) || !are_finite(items.rewards.data(), items.size)) return bend(items, options, direction);
  double sums[kGroupSums];
  items.curvatures.assign(items.order.size(), 0.0);
  items.directions.resize(items.order.size());
  for (size_t i = 0; i < items.order.size(); i++) items.directions[i] = static_cast<double>(direction[items.order[i]]);
  forward_long_list(items, groups, false, sums, threads);
}

template <typename Real>
GroupStatus double_backward(const Groups& groups, const Real* slopes, const double* factors,
                            const GroupUpstream& upstream, const Column& direction, const Column& gradient,
                            double* along, int threads) {
  const GroupOptions<Real> options(groups);
  std::atomic<bool> nan{false};
  threads = useful_threads(groups, threads);
  const int its_threads = groups.count() == 1 ? threads : 1;  // with one chunk the threads are all its own
  for_parts(groups, threads, [&](int64_t begin, int64_t end) {
    LoadedItems<Real> loaded;
    RankedItems<Real> items;
    std::vector<Real> copy;
    for (int64_t g = begin; g < end && !nan; g++) {
      const int size = static_cast<int>(groups.size_of(g));
      const int64_t row = groups.row_of(g), first = groups.in_row(groups.begin(g), row);
      copy.resize(static_cast<size_t>(size));
      const Real* const its = load_rewards(direction, row, first, size, copy.data());
      double product = 0;
      for (int i = 0; i < size && factors[g] != 0; i++)
        product += static_cast<double>(slopes[groups.begin(g) + i]) * static_cast<double>(its[i]);
      along[g] = product;
      if (!loaded.load(groups, g, g + 1)) {
        nan = true;
        return;
      }
      put_in_order(loaded.rewards, loaded.levels, size, Ranks<IntegerLike<Real>>(loaded.levels, size), its_threads,
                   items);
      multiply(items, groups, options, its, its_threads);
      std::vector<double> bent(static_cast<size_t>(size));
      for (size_t i = 0; i < bent.size(); i++) bent[static_cast<size_t>(items.order[i])] = items.slopes[i];
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
