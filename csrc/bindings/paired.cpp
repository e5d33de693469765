// The paired loss for Python: eager calls over tensors as they are, and the operators prefloss::paired_forward,
// paired_backward, paired_double_backward. Names, reading of arguments, where results go; no arithmetic.
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "call.h"
#include "views.h"

namespace prefloss {
namespace {

using torch_abi::Arguments;
using torch_abi::Tensor;
using torch_abi::Value;

// ---- Eager calls ----

// The two parts of a tensor; none where no stride leads from pair to pair.
Fit split(const View& rewards, int layout, Column& chosen, Column& rejected) {
  if (rewards.dimensions == 0 || rewards.sizes[0] % 2 != 0) return Fit::kNo;
  if (layout == kInterleaved && rewards.count() != rewards.sizes[0]) return Fit::kNo;
  const Fit fit = as_column(rewards, 0, chosen);
  rejected = chosen;
  const int64_t second = chosen.stride * (layout == kInterleaved ? 1 : rewards.count() / 2);
  if (layout == kInterleaved) chosen.stride = rejected.stride = 2 * chosen.stride;
  if (rewards.count() > 0)
    rejected.data = static_cast<char*>(chosen.data) + second * kBytes[static_cast<int>(rewards.dtype)];
  return fit;
}

struct EagerPairs {
  View rewards;
  Pairs pairs;
  Copies copies;

  Fit read_from(py::handle given, py::handle rejected, int layout, py::handle margin, py::handle weight,
                py::handle target) {
    if (!read(given, rewards) || !rewards.is_floating()) return Fit::kNo;
    const auto is_option = [&](const View& view) { return view.is_option(rewards) && has_shape(view, layout); };
    const auto is_weight = [&](const View& view) { return view.is_weight(rewards) && has_shape(view, layout); };
    const auto is_like = [&](const View& view) { return view.dtype == rewards.dtype && view.has_shape_of(rewards); };
    pairs.count = layout == kPaired ? rewards.count() : rewards.count() / 2;
    Fit fit = layout != kPaired ? split(rewards, layout, pairs.chosen, pairs.rejected)
              : rejected.is_none()
                  ? Fit::kNo
                  : both(copies.gather(rewards, pairs.chosen), column(rejected, is_like, pairs.rejected));
    fit = both(fit, column(margin, is_option, pairs.margin));
    fit = both(fit, column(weight, is_weight, pairs.weight));
    return both(fit, column(target, is_option, pairs.target));
  }

  template <typename Accepts>
  Fit column(py::handle handle, const Accepts& accepts, Column& column) {
    return read_column(handle, rewards, accepts, column, &copies);
  }

  // Whether terms, which are contiguous, are as rewards are.
  bool terms_look_like_rewards() const {
    Column its;
    return rewards.dtype == accumulation_dtype(rewards.dtype) && as_column(rewards, 0, its) == Fit::kYes &&
           (its.stride == 1 || pairs.count < 2);
  }

  // Where a gradient goes, if it is wanted: one column, or the two parts of a stacked one.
  bool read_output(py::handle handle, int layout, Column& first, Column& second) {
    View view;
    if (handle.is_none()) return true;
    if (!read_result(handle, view) || view.cuda != rewards.cuda) return false;
    return (layout == kPaired ? copies.make_room(view, first) : split(view, layout, first, second)) == Fit::kYes;
  }

  // The float64 sums of a call, if there are any.
  bool read_sums(py::handle handle, double*& sums) const {
    View view;
    if (handle.is_none()) return true;
    if (!read(handle, view) || view.cuda != rewards.cuda || view.count() != kSums || view.dtype != Dtype::kFloat64)
      return false;
    return sums = static_cast<double*>(view.data), view.strides[0] == 1;
  }

 private:
  // That of the pairs: the rewards', with half as many along dimension 0 where two are stacked.
  bool has_shape(const View& view, int layout) const {
    if (layout == kPaired) return view.has_shape_of(rewards);
    return view.dimensions == rewards.dimensions && rewards.dimensions > 0 && view.sizes[0] == rewards.sizes[0] / 2 &&
           std::equal(view.sizes + 1, view.sizes + view.dimensions, rewards.sizes + 1);
  }
};

// None, where the operators must be asked, or Python's checks first.
std::optional<PairedCall> call_of(py::handle rewards, py::handle rejected, int layout, py::handle margin,
                                  py::handle weight, py::handle target, const py::tuple& options, bool checked) {
  EagerPairs given;
  given.copies = Copies(false);
  PairedCall call;
  call.layout = layout;
  const Fit fit = given.read_from(rewards, rejected, layout, tensor_or_none(margin), weight, tensor_or_none(target));
  if (fit == Fit::kNo || !call.read(options, margin, weight, target, given.rewards, checked)) return std::nullopt;
  call.copied = fit == Fit::kAfterCopy;
  call.is_plain = layout == kPaired && fit == Fit::kYes && !given.pairs.has_columns() && !call.statistics &&
                  !call.tensor_denominator && (call.reduction != kNone || given.terms_look_like_rewards());
  return call;
}

void forward(py::handle rewards, py::handle rejected, py::handle margin, py::handle weight, py::handle target,
             py::handle denominator, const PairedCall& call, py::handle loss, py::handle sums) {
  EagerPairs given;
  Pairs& pairs = given.pairs;
  const double* by = nullptr;
  if (given.read_from(rewards, rejected, call.layout, margin, weight, target) != Fit::kYes ||
      !call.read_tensor(denominator, given.rewards, by))
    throw std::invalid_argument("paired_forward was given what paired_call refuses");
  pairs.options = call.options;
  const Dtype real = accumulation_dtype(given.rewards.dtype);
  ForwardOutputs outputs;
  if (call.reduction == kNone)
    outputs.terms = {output(loss, real, pairs.count), real, 1, 0};
  else
    outputs.loss = output(loss, real, 1);
  outputs.sums = static_cast<double*>(output(sums, Dtype::kFloat64, kSums));
  outputs.statistics = call.statistics;
  Place place = place_of(given.rewards.cuda, given.rewards.device_index, pairs.count);
  const Tensor scratch = scratch_for(place, given.rewards.device_index, scratch_size(place.cuda, pairs));
  run_without_gil(pairs.count,
                  [&] { prefloss::paired_forward(pairs, call.divisor(pairs, nullptr, by), outputs, place); });
}

// False, with nothing written, where the tensors given now (hooks and `.data` may have changed them) are not what
// `accepts` accepts.
bool backward(py::handle grad, py::handle rewards, py::handle rejected, py::handle margin, py::handle weight,
              py::handle target, py::handle denominator, py::handle sums, const PairedCall& call,
              py::handle grad_rewards, py::handle grad_rejected, py::handle grad_margin) {
  EagerPairs given;
  Pairs& pairs = given.pairs;
  Column upstream;
  Gradients gradients;
  double* totals = nullptr;
  const double* number = nullptr;
  const auto is_upstream = [&](const View& view) {
    return view.dtype == accumulation_dtype(given.rewards.dtype) &&
           view.count() == (call.reduction == kNone ? pairs.count : 1);
  };
  if (given.read_from(rewards, rejected, call.layout, margin, weight, target) != Fit::kYes ||
      given.column(grad, is_upstream, upstream) != Fit::kYes || !given.read_sums(sums, totals) ||
      !call.read_tensor(denominator, given.rewards, number) ||
      !given.read_output(grad_rewards, call.layout, gradients.chosen, gradients.rejected) ||
      !given.read_output(grad_margin, kPaired, gradients.margin, gradients.margin))
    return false;
  if (call.layout == kPaired && !given.read_output(grad_rejected, kPaired, gradients.rejected, gradients.rejected))
    return false;
  pairs.options = call.options;
  if (call.reduction != kNone) upstream.stride = 0;
  const Divisor by = call.divisor(pairs, totals ? totals + kWeight : nullptr, number);
  if (by.total_weight && totals == nullptr) return false;
  const Place place = place_of(given.rewards.cuda, given.rewards.device_index, pairs.count);
  run_without_gil(pairs.count, [&] { prefloss::paired_backward(pairs, by, upstream, gradients, place); });
  given.copies.scatter();
  return true;
}

// ---- Operators ----

// The arguments that the three operators share, in the order of their schema (python/prefloss/operators/paired.py).
class PairedOperator {
 public:
  Pairs pairs;
  Divisor divisor;
  bool statistics = false;

  // `sums`: whether those of the forward pass are among them.
  PairedOperator(Arguments& arguments, bool sums) {
    Tensor chosen = arguments.tensor(), rejected = arguments.tensor(), margin = arguments.optional_tensor(),
           weight = arguments.optional_tensor(), target = arguments.optional_tensor(),
           denominator = arguments.optional_tensor(), numbers = arguments.optional_tensor(),
           totals = sums ? arguments.optional_tensor() : Tensor();
    pairs.options = arguments.options(numbers);
    reduction_ = static_cast<int>(arguments.integer());
    statistics = arguments.boolean();
    const int64_t batch = columns_.batch = arguments.integer();
    columns_.rewards = chosen_ = &columns_.keep(std::move(chosen));
    guard_.emplace(*chosen_);
    shape_ = chosen_->sizes();
    rows_.assign(shape_.begin(), shape_.begin() + batch);
    pairs.rows = product(rows_);
    pairs.count = product({shape_.begin() + batch, shape_.end()});
    columns_.check(*chosen_, "chosen", pairs.rows * pairs.count);
    pairs.chosen = columns_.of(*chosen_);
    const Dtype dtype = pairs.chosen.dtype;
    if (dtype > Dtype::kFloat16)
      throw std::invalid_argument("chosen must have dtype float64, float32, bfloat16 or float16");
    pairs.rejected = per_pair(std::move(rejected), "rejected", {dtype});
    pairs.margin = per_pair(std::move(margin), "margin", {dtype, Dtype::kFloat32});
    pairs.weight = per_pair(std::move(weight), "weight", {dtype, Dtype::kFloat32, Dtype::kBool});
    pairs.target = per_pair(std::move(target), "target", {dtype, Dtype::kFloat32});
    if (reduction_ != kMean) return;
    if (denominator) {
      const Column by = columns_.of(std::move(denominator), "denominator", pairs.rows, {Dtype::kFloat64});
      divisor = {1, static_cast<const double*>(by.data), by.row_stride};
    } else if (pairs.weight) {
      if (sums && !totals) throw std::invalid_argument("sums must be given: their total weight is what divides");
      const Column by = columns_.of(std::move(totals), "sums", pairs.rows * kSums, {Dtype::kFloat64});
      if (by && by.stride != 1) throw std::invalid_argument("sums must be contiguous");
      divisor = {1, by ? static_cast<const double*>(by.data) + kWeight : nullptr, by ? by.row_stride : 0, true};
    } else {
      divisor = PairedCall().divisor(pairs, nullptr);
    }
  }

  bool per_pair() const { return reduction_ == kNone; }
  Place place() const { return place_of(chosen_->is_cuda(), chosen_->device_index(), pairs.rows * pairs.count); }
  Tensor scratch(Place& place) const {
    return scratch_for(place, chosen_->device_index(), scratch_size(place.cuda, pairs));
  }

  // Results: one entry a loss; the sums of each row; one entry a pair.
  Tensor new_loss() const {
    return chosen_->new_empty(per_pair() ? shape_ : rows_, accumulation_dtype(pairs.chosen.dtype));
  }
  Tensor new_sums() const {
    std::vector<int64_t> sizes = rows_;
    sizes.push_back(kSums);
    return chosen_->new_empty(sizes, Dtype::kFloat64);
  }
  Tensor new_gradient(Dtype dtype) const { return chosen_->new_empty(shape_, dtype); }
  // An operator returns tensors only: where there is no margin, its gradient is one without entries.
  Tensor new_margin_gradient() const {
    if (pairs.margin) return new_gradient(pairs.margin.dtype);
    std::vector<int64_t> sizes = rows_;
    sizes.push_back(0);
    return chosen_->new_empty(sizes, pairs.chosen.dtype);
  }

  // One entry a pair.
  Column per_pair(Tensor&& tensor, const char* name, std::initializer_list<Dtype> dtypes) {
    return columns_.of(std::move(tensor), name, pairs.rows * pairs.count, dtypes);
  }
  Column per_pair(const Tensor& result) { return columns_.of(result); }
  // One entry a loss.
  Column per_loss(Tensor&& tensor, const char* name) {
    const int64_t entries = pairs.rows * (per_pair() ? pairs.count : 1);
    return of_losses(columns_.of(std::move(tensor), name, entries, {accumulation_dtype(pairs.chosen.dtype)}));
  }
  Column per_loss(const Tensor& result) { return of_losses(columns_.of(result)); }

 private:
  Columns columns_;
  std::optional<torch_abi::DeviceGuard> guard_;
  const Tensor* chosen_ = nullptr;
  int reduction_ = kMean;
  Column of_losses(Column column) const {
    if (!per_pair()) column.stride = 0;
    return column;
  }
  std::vector<int64_t> shape_, rows_;  // the pairs', and its first dimensions, each entry of which is a loss of its own
};

void forward_operator(Value* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  PairedOperator call(arguments, false);
  Tensor loss = call.new_loss(), sums = call.new_sums();
  ForwardOutputs outputs;
  outputs.sums = static_cast<double*>(sums.data());
  outputs.statistics = call.statistics;
  if (call.per_pair())
    outputs.terms = call.per_pair(loss);
  else
    outputs.loss = loss.data();
  Place place = call.place();
  const Tensor scratch = call.scratch(place);
  prefloss::paired_forward(call.pairs, call.divisor, outputs, place);
  stack[0] = loss.release();
  stack[1] = sums.release();
}

void backward_operator(Value* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  Tensor grad = arguments.tensor();
  PairedOperator call(arguments, true);
  const Column upstream = call.per_loss(std::move(grad), "the upstream gradient");
  const Pairs& pairs = call.pairs;
  Tensor chosen = call.new_gradient(pairs.chosen.dtype), rejected = call.new_gradient(pairs.chosen.dtype),
         margin = call.new_margin_gradient();
  const Gradients gradients{call.per_pair(chosen), call.per_pair(rejected),
                            pairs.margin ? call.per_pair(margin) : Column{}};
  prefloss::paired_backward(pairs, call.divisor, upstream, gradients, call.place());
  stack[2] = margin.release();
  stack[0] = chosen.release();
  stack[1] = rejected.release();
}

void double_backward_operator(Value* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  Tensor towards_chosen = arguments.optional_tensor(), towards_rejected = arguments.optional_tensor(),
         towards_margin = arguments.optional_tensor(), grad = arguments.tensor();
  PairedOperator call(arguments, true);
  const Pairs& pairs = call.pairs;
  const Gradients directions{
      call.per_pair(std::move(towards_chosen), "the direction towards chosen", {pairs.chosen.dtype}),
      call.per_pair(std::move(towards_rejected), "the direction towards rejected", {pairs.chosen.dtype}),
      call.per_pair(std::move(towards_margin), "the direction towards margin", {pairs.margin.dtype})};
  const Column upstream = call.per_loss(std::move(grad), "the upstream gradient");
  Tensor along = call.new_loss(), chosen = call.new_gradient(pairs.chosen.dtype),
         rejected = call.new_gradient(pairs.chosen.dtype), margin = call.new_margin_gradient();
  const Gradients gradients{call.per_pair(chosen), call.per_pair(rejected),
                            pairs.margin ? call.per_pair(margin) : Column{}};
  Place place = call.place();
  const Tensor scratch = call.scratch(place);
  prefloss::paired_double_backward(pairs, call.divisor, upstream, directions, call.per_loss(along), gradients, place);
  stack[3] = margin.release();
  stack[0] = along.release();
  stack[1] = chosen.release();
  stack[2] = rejected.release();
}

}  // namespace

void add_paired(py::module_& module) {
  using direct::attribute;
  add_call<PairedCall>(
      module, "prefloss._core.PairedCall",
      {attribute<PairedCall, &PairedCall::layout>("layout"), attribute<PairedCall, &PairedCall::is_plain>("is_plain"),
       attribute<PairedCall, &PairedCall::divides_by_weight>("divides_by_weight")});
  direct::add_function<&call_of>(module, "paired_call",
                                 "rewards, rejected, layout, margin, weight, target, options, checked");
  direct::add_function<&forward>(module, "paired_forward",
                                 "rewards, rejected, margin, weight, target, denominator, call, loss, sums");
  direct::add_function<&backward>(module, "paired_backward",
                                  "grad, rewards, rejected, margin, weight, target, denominator, sums, call, "
                                  "grad_rewards, grad_rejected, grad_margin");
}

void register_paired() {
  torch_abi::register_kernel("paired_forward", forward_operator);
  torch_abi::register_kernel("paired_backward", backward_operator);
  torch_abi::register_kernel("paired_double_backward", double_backward_operator);
}

}  // namespace prefloss
