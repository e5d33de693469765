#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/kernels.h"
#include "views.h"

namespace prefloss {
namespace {

void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

void require_memory(const void* data, int64_t entries, const char* name) {
  if (data == nullptr && entries > 0)
    throw std::invalid_argument(std::string(name) + " has no memory (a null pointer); a plain dense tensor is needed");
}

Column column(const py::object& object) {
  if (object.is_none()) return {};
  const auto [data, dtype, stride, row_stride] = object.cast<std::tuple<uintptr_t, int, int64_t, int64_t>>();
  if (dtype < 0 || dtype > static_cast<int>(Dtype::kBool))
    throw std::invalid_argument("unknown dtype tag " + std::to_string(dtype));
  return {address(data), static_cast<Dtype>(dtype), stride, row_stride};
}

// (chosen, rejected, margin, weight, target, rows, count, (beta, margin, target, label_smoothing,
// center_rewards_coefficient)); nothing is read by it yet.
Pairs columns_of(const py::tuple& tuple) {
  Pairs pairs{column(tuple[0]), column(tuple[1]),         column(tuple[2]),         column(tuple[3]),
              column(tuple[4]), tuple[5].cast<int64_t>(), tuple[6].cast<int64_t>(), {}};
  const auto [beta, margin, target, label_smoothing, center] =
      tuple[7].cast<std::tuple<double, double, double, double, double>>();
  pairs.options = {beta, margin, target, label_smoothing, center};
  return pairs;
}

// (scores, the number of them, addresses of the indices of chosen and rejected, whether they are int64)
Comparisons comparisons_of(const py::tuple& tuple, const Pairs& pairs) {
  const auto [items, chosen, rejected, wide] =
      py::tuple(tuple[py::slice(1, 5, 1)]).cast<std::tuple<int64_t, uintptr_t, uintptr_t, bool>>();
  const Comparisons comparisons{column(tuple[0]), items, address(chosen), address(rejected), wide};
  require_memory(comparisons.scores.data, items, "scores");
  require_memory(comparisons.chosen, pairs.count, "chosen_index");
  require_memory(comparisons.rejected, pairs.count, "rejected_index");
  return comparisons;
}

// (number, address of one float64 a row or 0, its stride, whether that is a total weight)
Divisor divisor_of(const py::tuple& tuple) {
  const auto [number, rows, stride, total_weight] = tuple.cast<std::tuple<double, uintptr_t, int64_t, bool>>();
  return {number, static_cast<const double*>(address(rows)), stride, total_weight};
}

// False where an index is out of range.
bool old_indexed_forward(const py::tuple& items, const py::tuple& inputs, const py::tuple& divisor, uintptr_t loss,
                         uintptr_t sums, bool statistics, uintptr_t slopes, int threads) {
  const Pairs pairs = columns_of(inputs);
  const Comparisons comparisons = comparisons_of(items, pairs);
  const Divisor by = divisor_of(divisor);
  const ForwardOutputs outputs{address(loss), {}, static_cast<double*>(address(sums)), statistics};
  auto* const totals = static_cast<double*>(address(slopes));
  bool in_range = false;
  run_without_gil(pairs.count,
                  [&] { in_range = cpu::kernels().indexed_forward(comparisons, pairs, by, outputs, totals, threads); });
  return in_range;
}

}  // namespace

void add_indexed(py::module_& module) { module.def("indexed_forward", &old_indexed_forward); }

}  // namespace prefloss
