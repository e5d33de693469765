// The loss of comparisons by index for Python's eager calls; under a compiler or a transform the scores are gathered,
// and the operators over pairs do the rest. Names, reading of arguments, where results go; no arithmetic.
#include <algorithm>
#include <optional>
#include <stdexcept>

#include "call.h"
#include "views.h"

namespace prefloss {
namespace {

struct EagerComparisons {
  View scores;
  Comparisons comparisons;
  Pairs pairs;

  Fit read_from(py::handle given, py::handle chosen, py::handle rejected, py::handle margin, py::handle weight,
                py::handle target) {
    if (!read(given, scores) || !scores.is_floating() || scores.dimensions != 1) return Fit::kNo;
    View chosen_view;
    if (!read(chosen, chosen_view) || chosen_view.cuda != scores.cuda || chosen_view.dimensions != 1 ||
        (chosen_view.dtype != Dtype::kInt64 && chosen_view.dtype != Dtype::kInt32))
      return Fit::kNo;
    const auto is_rejected = [&](const View& view) {
      return view.dtype == chosen_view.dtype && view.has_shape_of(chosen_view);
    };
    const auto is_option = [&](const View& view) { return view.is_option(scores) && view.has_shape_of(chosen_view); };
    const auto is_weight = [&](const View& view) { return view.is_weight(scores) && view.has_shape_of(chosen_view); };
    comparisons.items = scores.count();
    pairs.count = chosen_view.count();
    Fit fit = both(as_column(scores, 0, comparisons.scores), as_column(chosen_view, 0, comparisons.chosen));
    fit = both(fit, read_column(rejected, scores, is_rejected, comparisons.rejected));
    fit = both(fit, read_column(margin, scores, is_option, pairs.margin));
    fit = both(fit, read_column(weight, scores, is_weight, pairs.weight));
    return both(fit, read_column(target, scores, is_option, pairs.target));
  }

  // A GPU's sums take memory for each item, little beside what the comparisons take; but not where those are few.
  bool is_worth_its_memory() const {
    constexpr int64_t kLittle = int64_t{1} << 25;
    const int64_t size = indexed_scratch_size(scores.cuda, comparisons, pairs, true);
    return size >= 0 && size <= std::max(kLittle, 8 * pairs.count);
  }
};

// None, where the operators must be asked, or Python's checks first.
std::optional<PairedCall> call_of(py::handle scores, py::handle chosen_index, py::handle rejected_index,
                                  py::handle margin, py::handle weight, py::handle target, const py::tuple& options,
                                  bool checked) {
  EagerComparisons given;
  PairedCall call;
  const Fit fit =
      given.read_from(scores, chosen_index, rejected_index, tensor_or_none(margin), weight, tensor_or_none(target));
  if (fit != Fit::kYes || !call.read(options, margin, weight, target, given.scores, checked) ||
      call.reduction == kNone || requires_grad(margin))
    return std::nullopt;
  given.pairs.options = call.options;
  if (runs_on_cuda(given.scores.cuda) && (call.statistics || !given.is_worth_its_memory())) return std::nullopt;
  return call;
}

// False where an index is out of range; the results mean nothing then.
bool forward(py::handle scores, py::handle chosen_index, py::handle rejected_index, py::handle margin,
             py::handle weight, py::handle target, py::handle denominator, const PairedCall& call, py::handle loss,
             py::handle slopes, py::handle sums) {
  EagerComparisons given;
  const double* by = nullptr;
  if (given.read_from(scores, chosen_index, rejected_index, margin, weight, target) != Fit::kYes ||
      !call.read_tensor(denominator, given.scores, by))
    throw std::invalid_argument("indexed_forward was given what indexed_call refuses");
  Pairs& pairs = given.pairs;
  pairs.options = call.options;
  const Dtype real = accumulation_dtype(given.scores.dtype);
  ForwardOutputs outputs;
  outputs.loss = output(loss, real, 1);
  outputs.sums = static_cast<double*>(output(sums, Dtype::kFloat64, kSums));
  outputs.statistics = call.statistics;
  void* const slope = output(slopes, real, given.comparisons.items);
  bool in_range = false;
  Place place = place_of(given.scores.cuda, given.scores.device_index, pairs.count);
  const torch_abi::Tensor scratch = scratch_for(
      place, given.scores.device_index, indexed_scratch_size(place.cuda, given.comparisons, pairs, slope != nullptr));
  run_without_gil(pairs.count + given.comparisons.items, [&] {
    in_range = indexed_forward(given.comparisons, pairs, call.divisor(pairs, nullptr, by), outputs, slope, place);
  });
  return in_range;
}

}  // namespace

void add_indexed(py::module_& module) {
  direct::add_function<&call_of>(module, "indexed_call",
                                 "scores, chosen_index, rejected_index, margin, weight, target, options, checked");
  direct::add_function<&forward>(
      module, "indexed_forward",
      "scores, chosen_index, rejected_index, margin, weight, target, denominator, call, loss, slopes, sums");
}

}  // namespace prefloss
