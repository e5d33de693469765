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

// (number, address of one float64 a row or 0, its stride, whether that is a total weight)
Divisor divisor_of(const py::tuple& tuple) {
  const auto [number, rows, stride, total_weight] = tuple.cast<std::tuple<double, uintptr_t, int64_t, bool>>();
  return {number, static_cast<const double*>(address(rows)), stride, total_weight};
}

// (whether on CUDA, threads, stream, address of the scratch memory)
Place place_of(const py::tuple& tuple) {
  const auto [cuda, threads, stream, scratch] = tuple.cast<std::tuple<bool, int, uintptr_t, uintptr_t>>();
  return {cuda, threads, address(stream), static_cast<double*>(address(scratch))};
}

// (address of the rewards, of the ranks, whether the rewards are float64, rows, groups a row, their size, items,
// address of their offsets or 0, (beta, margin, label_smoothing, center_rewards_coefficient), whether ties count half,
// from how many items on a group is large)
Groups groups_of(const py::tuple& tuple) {
  const auto [rewards, ranks, wide, rows, count, size, items, offsets] =
      py::tuple(tuple[py::slice(0, 8, 1)])
          .cast<std::tuple<uintptr_t, uintptr_t, bool, int64_t, int64_t, int64_t, int64_t, uintptr_t>>();
  Groups groups{address(rewards),
                static_cast<const int64_t*>(address(ranks)),
                wide,
                rows,
                count,
                size,
                items,
                static_cast<const int64_t*>(address(offsets)),
                {},
                tuple[9].cast<bool>(),
                tuple[10].cast<int64_t>()};
  const auto [beta, margin, label_smoothing, center] = tuple[8].cast<std::tuple<double, double, double, double>>();
  groups.options = {beta, margin, 1, label_smoothing, center};
  require_memory(groups.rewards, items, "rewards");
  return groups;
}

// `average`: (address of the weights or 0, whether over pairs, whether one loss a group, divisor)
void old_grouped_forward(const py::tuple& inputs, const py::tuple& average, uintptr_t loss, uintptr_t factors,
                         uintptr_t sums, uintptr_t slopes, bool statistics, const py::tuple& where) {
  const Groups groups = groups_of(inputs);
  require_memory(groups.ranks, groups.items, "ranks");
  const GroupAverage how{static_cast<const double*>(address(average[0].cast<uintptr_t>())), average[1].cast<bool>(),
                         average[2].cast<bool>(), divisor_of(average[3])};
  const GroupOutputs outputs{address(loss), static_cast<double*>(address(factors)), static_cast<double*>(address(sums)),
                             address(slopes), statistics};
  const Place place = place_of(where);
  run_without_gil(groups.items, [&] { prefloss::grouped_forward(groups, how, outputs, place); });
}

// `upstream`: (its address, whether one a group)
void old_grouped_backward(const py::tuple& inputs, uintptr_t slopes, uintptr_t factors, const py::tuple& upstream,
                          uintptr_t gradient, const py::tuple& where) {
  const Groups groups = groups_of(inputs);
  const GroupUpstream grad{address(upstream[0].cast<uintptr_t>()), upstream[1].cast<bool>()};
  const auto* const its_factors = static_cast<const double*>(address(factors));
  const Place place = place_of(where);
  run_without_gil(groups.items, [&] {
    prefloss::grouped_backward(groups, address(slopes), its_factors, grad, address(gradient), place);
  });
}

void old_grouped_double_backward(const py::tuple& inputs, uintptr_t direction, uintptr_t result,
                                 const py::tuple& where) {
  const Groups groups = groups_of(inputs);
  require_memory(groups.ranks, groups.items, "ranks");
  const Place place = place_of(where);
  run_without_gil(groups.items,
                  [&] { prefloss::grouped_double_backward(groups, address(direction), address(result), place); });
}

}  // namespace

void add_grouped(py::module_& module) {
  module.def("grouped_forward", &old_grouped_forward);
  module.def("grouped_backward", &old_grouped_backward);
  module.def("grouped_double_backward", &old_grouped_double_backward);
}

}  // namespace prefloss
