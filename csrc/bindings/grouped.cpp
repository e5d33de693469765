// The grouped loss and its derivatives for Python: eager calls over tensors as they are, and the operators
// prefloss::grouped_forward, grouped_backward, grouped_double_backward. Names, reading of arguments, where results go;
// no arithmetic.
#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "../cpu/kernels.h"
#include "call.h"
#include "views.h"

namespace prefloss {
namespace {

using torch_abi::Arguments;
using torch_abi::Tensor;
using torch_abi::Value;

struct GroupedCall : Call {
  bool half_ties = false, over_pairs = false;
};

// Where each group of each row begins, and where the last one ends.
std::vector<int64_t> offsets_of(const int64_t* sizes, int64_t stride, int64_t groups, int64_t rows, int64_t items) {
  std::vector<int64_t> offsets{0};
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t g = 0; g < groups; g++) {
      const int64_t size = sizes[g * stride], left = (row + 1) * items - offsets.back();
      if (size < 0) throw std::invalid_argument("group_sizes must be >= 0, got " + std::to_string(size));
      if (size > left)
        throw std::invalid_argument("group_sizes must add up to the number of rewards, " + std::to_string(items) +
                                    ", got more");
      offsets.push_back(offsets.back() + size);
    }
    if (offsets.back() != (row + 1) * items)
      throw std::invalid_argument("group_sizes must add up to the number of rewards, " + std::to_string(items) +
                                  ", got " + std::to_string(offsets.back() - row * items));
  }
  return offsets;
}

int64_t largest_of(const std::vector<int64_t>& offsets) {
  int64_t largest = 0;
  for (size_t g = 1; g < offsets.size(); g++) largest = std::max(largest, offsets[g] - offsets[g - 1]);
  return largest;
}

// The items of long lists in the order of their ranks, where a GPU's kernels want that. One list, or several of one
// size, take one sort by torch, and others two: the second is by keys that keep the lists apart.
class RankOrder {
 public:
  RankOrder(Groups& groups, bool statistics, const Place& place, int device_index) {
    if (!wants_order(place.cuda, groups, statistics)) return;
    const auto sort = [&](const int64_t* keys, int64_t rows) {
      std::tie(ranks_, order_) = Tensor::sorted(keys, {rows, groups.items / rows}, place.cuda, device_index);
    };
    const int64_t* const ranks = static_cast<const int64_t*>(groups.ranks.data);
    const bool are_ragged = groups.offsets && groups.count() > 1;
    if (!groups.filled) sort(ranks, are_ragged ? 1 : groups.count());
    if (groups.filled || are_ragged) {
      keys_ = Tensor::empty({groups.items}, Dtype::kInt64, place.cuda, device_index);
      int64_t* const keys = static_cast<int64_t*>(keys_.data());
      list_keys(groups, numbers(ranks_), numbers(order_), keys, place);
      sort(keys, are_ragged ? 1 : groups.count());
    }
    groups.sorted_ranks = numbers(ranks_);
    groups.order = numbers(order_);
  }

 private:
  Tensor keys_, ranks_, order_;  // kept

  static const int64_t* numbers(const Tensor& tensor) {
    return tensor ? static_cast<const int64_t*>(tensor.data()) : nullptr;
  }
};

// ---- Eager calls ----

struct EagerGroups {
  View rewards, group_sizes;
  Column sizes, weight, filled;
  Groups groups;
  Copies copies;
  std::vector<int64_t> offsets;
  Tensor offsets_there;  // on a GPU

  Fit read_from(py::handle given, py::handle ranks, py::handle its_sizes, py::handle its_weight,
                py::handle its_filled) {
    if (!read(given, rewards) || !rewards.is_floating()) return Fit::kNo;
    Fit fit = copies.gather(rewards, groups.rewards);
    groups.items = rewards.count();
    if (groups.items >= kMostItems) return Fit::kNo;
    if (its_sizes.is_none()) {
      if (rewards.dimensions != 2) return Fit::kNo;
      groups.groups = rewards.sizes[0];
      groups.size = rewards.sizes[1];
    } else {
      if (rewards.dimensions != 1 || !read(its_sizes, group_sizes) || group_sizes.cuda ||
          group_sizes.dtype != Dtype::kInt64 || group_sizes.dimensions != 1)
        return Fit::kNo;
      fit = both(fit, as_column(group_sizes, 0, sizes));
      groups.groups = group_sizes.count();
    }
    const auto is_rank = [&](const View& view) { return view.has_shape_of(rewards); };
    fit = both(fit, read_column(ranks, rewards, is_rank, groups.ranks, &copies));
    const auto is_weight = [&](const View& view) {
      return view.is_weight(rewards) && view.dimensions == 1 && view.count() == groups.groups;
    };
    fit = both(fit, read_column(its_weight, rewards, is_weight, weight));
    const auto is_filled = [&](const View& view) {
      return view.dtype == Dtype::kInt64 && view.dimensions == 1 && view.count() == groups.groups && !has_sizes();
    };
    if (read_column(its_filled, rewards, is_filled, filled) == Fit::kNo ||
        (filled && filled.stride != 1 && groups.groups > 1))
      return Fit::kNo;
    groups.filled = static_cast<const int64_t*>(filled.data);
    return fit;
  }

  // Whether they are given; an empty tensor of them has no memory.
  bool has_sizes() const { return group_sizes.dimensions != 0; }

  // Throws where the sizes do not add up.
  void divide() {
    if (!has_sizes()) return;
    offsets = offsets_of(static_cast<const int64_t*>(sizes.data), sizes.stride, groups.groups, 1, groups.items);
    groups.offsets = offsets.data();
    groups.size = largest_of(offsets);
    if (!rewards.cuda) return;
    offsets_there = Tensor::copied(offsets, true, rewards.device_index);
    groups.offsets = static_cast<const int64_t*>(offsets_there.data());
  }

  // Whether a GPU's kernels take them: python/prefloss/eager.py converts rewards and ranks.
  bool is_ready_for_cuda() const {
    return rewards.dtype == accumulation_dtype(rewards.dtype) && groups.ranks.dtype == Dtype::kInt64 &&
           (groups.items < 2 || (groups.rewards.stride == 1 && groups.ranks.stride == 1));
  }
};

// None, where the operators must be asked, or Python's checks first.
std::optional<GroupedCall> call_of(py::handle rewards, py::handle ranks, py::handle group_sizes, py::handle weight,
                                   py::handle filled, py::handle margin, py::handle average, py::handle ties,
                                   const py::tuple& options, bool checked) {
  EagerGroups given;
  given.copies = Copies(false);
  GroupedCall call;
  const Fit fit = given.read_from(rewards, ranks, group_sizes, weight, filled);
  const Dtype dtype = given.rewards.dtype;
  if (fit == Fit::kNo || !call.read(options, given.rewards, checked) ||
      !read_number(margin, dtype, -HUGE_VAL, HUGE_VAL, call.options.margin) ||
      !read_choice(average, "groups", "pairs", call.over_pairs) || !read_choice(ties, "skip", "half", call.half_ties) ||
      requires_grad(ranks) || requires_grad(weight))
    return std::nullopt;
  call.copied = fit == Fit::kAfterCopy;
  return call;
}

// False where a rank is NaN.
bool forward(py::handle rewards, py::handle ranks, py::handle group_sizes, py::handle weight, py::handle filled,
             py::handle denominator, const GroupedCall& call, int64_t large, py::handle loss, py::handle slopes,
             py::handle sums) {
  EagerGroups given;
  Groups& groups = given.groups;
  const Fit fit = given.read_from(rewards, ranks, group_sizes, weight, filled);
  const bool on_cuda = runs_on_cuda(given.rewards.cuda);
  const double* by = nullptr;
  if (fit != Fit::kYes || (on_cuda && !given.is_ready_for_cuda()) || !call.read_tensor(denominator, given.rewards, by))
    throw std::invalid_argument("grouped_forward was given what grouped_call refuses");
  given.divide();
  groups.options = call.options;
  groups.half_ties = call.half_ties;
  groups.large = large;
  GroupAverage average{given.weight, call.over_pairs, call.reduction == kNone, {}};
  if (call.reduction == kMean) average.divisor = {call.denominator.value_or(1), by, 0, !call.has_denominator()};
  const Dtype real = accumulation_dtype(given.rewards.dtype);
  GroupOutputs outputs;
  outputs.loss = output(loss, real, average.per_group ? groups.groups : 1);
  outputs.slopes = output(slopes, real, groups.items);
  outputs.sums = static_cast<double*>(output(sums, Dtype::kFloat64, kSums));
  outputs.statistics = call.statistics;
  Place place = place_of(given.rewards.cuda, given.rewards.device_index, kParallelPairs);
  const RankOrder order(groups, call.statistics, place, given.rewards.device_index);
  const int64_t size = grouped_scratch_size(place.cuda, groups, call.statistics);
  // A GPU's kernels also need room for what is not wanted.
  const Tensor scratch = scratch_for(place, given.rewards.device_index, on_cuda ? size + groups.groups + kSums : 0);
  if (on_cuda) {
    outputs.factors = place.scratch + size;
    if (outputs.sums == nullptr) outputs.sums = outputs.factors + groups.groups;
  }
  GroupStatus status = GroupStatus::kDone;
  run_without_gil(groups.items, [&] { status = grouped_forward(groups, average, outputs, place); });
  return status == GroupStatus::kDone;
}

// Both derivatives, on the CPU. False where a rank is NaN.
bool derivatives(py::handle rewards, py::handle ranks, py::handle group_sizes, py::handle weight,
                 const GroupedCall& call, int64_t large, py::handle gradient, py::handle curvatures) {
  EagerGroups given;
  Groups& groups = given.groups;
  if (given.read_from(rewards, ranks, group_sizes, weight, py::none()) != Fit::kYes || given.rewards.cuda ||
      call.reduction == kNone || call.has_denominator())
    throw std::invalid_argument("grouped_derivatives was given what grouped_call refuses");
  given.divide();
  groups.options = call.options;
  groups.half_ties = call.half_ties;
  groups.large = large;
  GroupAverage average{given.weight, call.over_pairs, false, {}};
  average.divisor.total_weight = call.reduction == kMean;
  double* const first = static_cast<double*>(output(gradient, Dtype::kFloat64, groups.items));
  double* const second = static_cast<double*>(output(curvatures, Dtype::kFloat64, groups.items));
  const int threads = place_of(false, 0, kParallelPairs).threads;
  GroupStatus status = GroupStatus::kDone;
  run_without_gil(groups.items,
                  [&] { status = cpu::kernels().grouped_derivatives(groups, average, first, second, threads); });
  return status == GroupStatus::kDone;
}

// The gradient from the slopes that forward kept, of groups or of items by index: one product each. False, with nothing
// written, where saved tensors are not what they were.
bool scale_slopes(py::handle grad, py::handle slopes, py::handle group_sizes, bool per_group, py::handle result) {
  View slope_view, grad_view;
  EagerGroups given;
  Column column, upstream, gradient;
  if (!read(slopes, slope_view) || !read(grad, grad_view) || !read_result(result, given.rewards)) return false;
  const View& result_view = given.rewards;
  if (slope_view.cuda != result_view.cuda || grad_view.cuda != result_view.cuda || !slope_view.is_floating() ||
      grad_view.dtype != slope_view.dtype || !result_view.is_floating() ||
      accumulation_dtype(result_view.dtype) != slope_view.dtype || !result_view.has_shape_of(slope_view) ||
      both(both(as_column(slope_view, 0, column), as_column(grad_view, 0, upstream)),
           as_column(result_view, 0, gradient)) != Fit::kYes)
    return false;
  if (column.stride != 1 && slope_view.count() > 1) return false;
  Groups& groups = given.groups;
  groups.rewards = gradient;  // says the type
  groups.items = slope_view.count();
  groups.groups = 1;
  groups.size = groups.items;
  if (per_group && !group_sizes.is_none()) {
    if (!read(group_sizes, given.group_sizes) || given.group_sizes.cuda || given.group_sizes.dtype != Dtype::kInt64 ||
        as_column(given.group_sizes, 0, given.sizes) != Fit::kYes)
      return false;
    groups.groups = given.group_sizes.count();
    given.divide();
  } else if (per_group) {
    groups.groups = grad_view.count();
    groups.size = groups.groups > 0 ? groups.items / groups.groups : 0;
  }
  if (grad_view.count() != (per_group ? groups.groups : 1)) return false;
  const Place place = place_of(result_view.cuda, result_view.device_index, groups.items);
  run_without_gil(groups.items,
                  [&] { grouped_backward(groups, slope_view.data, {upstream, per_group}, gradient, place); });
  return true;
}

// ---- Operators ----

// The arguments that the three operators share, in the order of their schema (python/prefloss/operators/grouped.py).
class GroupedOperator {
 public:
  Groups groups;
  GroupAverage average;
  bool statistics = false;

  explicit GroupedOperator(Arguments& arguments) {
    Tensor rewards = arguments.tensor(), ranks = arguments.tensor(), sizes = arguments.optional_tensor(),
           weight = arguments.optional_tensor(), filled = arguments.optional_tensor(),
           denominator = arguments.optional_tensor(), numbers = arguments.optional_tensor();
    groups.options = arguments.options(numbers);
    groups.half_ties = arguments.boolean();
    average.over_pairs = arguments.boolean();
    const int64_t reduction = arguments.integer();
    statistics = arguments.boolean();
    average.per_group = reduction == kNone;
    groups.large = kLargeGroup;
    groups.size = arguments.integer();
    columns_.rewards = rewards_ = &columns_.keep(std::move(rewards));
    guard_.emplace(*rewards_);
    shape_ = rewards_->sizes();
    rows_.assign(shape_.begin(), shape_.end() - 1);
    columns_.batch = static_cast<int64_t>(rows_.size());
    groups.rows = product(rows_);
    groups.items = groups.rows * shape_.back();
    on_cuda_ = runs_on_cuda(rewards_->is_cuda());
    groups.rewards = items(*rewards_, real(), "rewards");
    if (!View{nullptr, rewards_->dtype()}.is_floating()) throw std::invalid_argument("rewards must be floating-point");
    groups.ranks = items(columns_.keep(std::move(ranks)), Dtype::kInt64, "ranks");
    if (sizes) {
      groups.groups = product(sizes.sizes());
      Columns one_row;
      const Column its = one_row.of(std::move(sizes), "group_sizes", groups.groups, {Dtype::kInt64});
      const std::vector<int64_t> offsets =
          offsets_of(static_cast<const int64_t*>(its.data), its.stride, groups.groups, groups.rows, shape_.back());
      Tensor here = Tensor::copied(offsets, rewards_->is_cuda(), rewards_->device_index());
      groups.offsets = static_cast<const int64_t*>(columns_.keep(std::move(here)).data());
      groups.size = largest_of(offsets);
    } else {
      if (groups.size <= 0 || shape_.back() % groups.size != 0)
        throw std::invalid_argument("rewards has " + std::to_string(shape_.back()) +
                                    " entries, which are no groups of " + std::to_string(groups.size) +
                                    "; was it changed between forward and backward?");
      groups.groups = shape_.back() / groups.size;
    }
    if (filled && groups.offsets) throw std::invalid_argument("groups of group_sizes have no places to fill");
    if (filled) {
      columns_.check(filled, "filled", groups.count());
      groups.filled = static_cast<const int64_t*>(columns_.keep(filled.contiguous(Dtype::kInt64)).data());
    }
    average.weight =
        columns_.of(std::move(weight), "weight", groups.count(), {rewards_->dtype(), Dtype::kFloat32, Dtype::kBool});
    if (reduction != kMean) return;
    if (denominator) {
      const Column by = columns_.of(std::move(denominator), "denominator", groups.rows, {Dtype::kFloat64});
      average.divisor = {1, static_cast<const double*>(by.data), by.row_stride};
    } else {
      average.divisor = {1, nullptr, 0, true};
    }
  }

  RankOrder order(const Place& place) { return {groups, statistics, place, rewards_->device_index()}; }
  Place place() const { return place_of(rewards_->is_cuda(), rewards_->device_index(), kParallelPairs); }
  Tensor scratch(Place& place) const {
    return scratch_for(place, rewards_->device_index(), grouped_scratch_size(place.cuda, groups, statistics));
  }

  Dtype real() const { return accumulation_dtype(rewards_->dtype()); }
  Tensor new_loss() const { return rewards_->new_empty(average.per_group ? with(groups.groups) : rows_, real()); }
  Tensor new_factors() const { return rewards_->new_empty(with(groups.groups), Dtype::kFloat64); }
  Tensor new_sums() const { return rewards_->new_empty(with(kSums), Dtype::kFloat64); }
  Tensor new_slopes() const { return rewards_->new_empty(shape_, real()); }
  Tensor new_gradient() const { return rewards_->new_empty(shape_, rewards_->dtype()); }

  const Tensor& keep(Tensor&& tensor) { return columns_.keep(std::move(tensor)); }
  // One entry an item; on CUDA contiguous, of the type that its kernels take.
  Column items(const Tensor& tensor, Dtype on_cuda, const char* name) {
    columns_.check(tensor, name, groups.items);
    return columns_.of(on_cuda_ ? columns_.keep(tensor.contiguous(on_cuda)) : tensor);
  }
  // One entry a loss.
  Column upstream(Tensor&& tensor) {
    return columns_.of(std::move(tensor), "the upstream gradient", average.per_group ? groups.count() : groups.rows,
                       {real()});
  }
  Column result(const Tensor& tensor) { return columns_.of(tensor); }
  // So many numbers that forward kept.
  const void* kept(const Tensor& tensor, Dtype dtype, int64_t entries, const char* name) {
    columns_.check(tensor, name, entries);
    return columns_.keep(tensor.contiguous(dtype)).data();
  }

 private:
  Columns columns_;
  std::optional<torch_abi::DeviceGuard> guard_;
  const Tensor* rewards_ = nullptr;
  bool on_cuda_ = false;
  std::vector<int64_t> shape_, rows_;  // (..., items), and its first dimensions, each entry of which has a loss

  std::vector<int64_t> with(int64_t last) const {
    std::vector<int64_t> sizes = rows_;
    sizes.push_back(last);
    return sizes;
  }
};

void check(GroupStatus status) {
  if (status == GroupStatus::kNanRank)
    throw std::invalid_argument("ranks, or relevance, must be numbers, got nan among them");
}

void forward_operator(Value* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  GroupedOperator call(arguments);
  Tensor loss = call.new_loss(), slopes = call.new_slopes(), factors = call.new_factors(), sums = call.new_sums();
  GroupOutputs outputs{loss.data(), static_cast<double*>(factors.data()), static_cast<double*>(sums.data()),
                       slopes.data(), call.statistics};
  Place place = call.place();
  const RankOrder order = call.order(place);
  const Tensor scratch = call.scratch(place);
  check(grouped_forward(call.groups, call.average, outputs, place));
  stack[0] = loss.release();
  stack[1] = slopes.release();
  stack[2] = factors.release();
  stack[3] = sums.release();
}

void backward_operator(Value* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  Tensor grad = arguments.tensor(), slopes = arguments.tensor(), factors = arguments.tensor();
  GroupedOperator call(arguments);
  const GroupUpstream upstream{call.upstream(std::move(grad)), call.average.per_group};
  Tensor gradient = call.new_gradient();
  grouped_backward(call.groups, call.kept(slopes, call.real(), call.groups.items, "slopes"), upstream,
                   call.result(gradient), call.place());
  stack[0] = gradient.release();
}

void double_backward_operator(Value* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  Tensor direction = arguments.tensor(), grad = arguments.tensor(), slopes = arguments.tensor(),
         factors = arguments.tensor();
  GroupedOperator call(arguments);
  const GroupUpstream upstream{call.upstream(std::move(grad)), call.average.per_group};
  Tensor gradient = call.new_gradient(), along = call.new_factors();
  check(grouped_double_backward(
      call.groups, call.kept(slopes, call.real(), call.groups.items, "slopes"),
      static_cast<const double*>(call.kept(factors, Dtype::kFloat64, call.groups.count(), "factors")), upstream,
      call.items(call.keep(std::move(direction)), call.real(), "the direction"), call.result(gradient),
      static_cast<double*>(along.data()), call.place()));
  stack[0] = along.release();
  stack[1] = gradient.release();
}

}  // namespace

void add_grouped(py::module_& module) {
  module.attr("large_group") = kLargeGroup;
  module.attr("cpu_runs_cuda_kernels") = runs_on_cuda(false);
  add_call<GroupedCall>(module, "prefloss._core.GroupedCall",
                        {direct::attribute<GroupedCall, &GroupedCall::half_ties>("half_ties"),
                         direct::attribute<GroupedCall, &GroupedCall::over_pairs>("over_pairs")});
  direct::add_function<&call_of>(
      module, "grouped_call", "rewards, ranks, group_sizes, weight, filled, margin, average, ties, options, checked");
  direct::add_function<&forward>(
      module, "grouped_forward",
      "rewards, ranks, group_sizes, weight, filled, denominator, call, large, loss, slopes, sums");
  direct::add_function<&derivatives>(module, "grouped_derivatives",
                                     "rewards, ranks, group_sizes, weight, call, large, gradient, curvatures");
  direct::add_function<&scale_slopes>(module, "scale_slopes", "grad, slopes, group_sizes, per_group, result");
}

void register_grouped() {
  torch_abi::register_kernel("grouped_forward", forward_operator);
  torch_abi::register_kernel("grouped_backward", backward_operator);
  torch_abi::register_kernel("grouped_double_backward", double_backward_operator);
}

}  // namespace prefloss
