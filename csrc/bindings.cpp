// The Python module prefloss._core: names, argument translation, release of the GIL. No arithmetic, and no libtorch.
//
// A column is None, or (address, dtype, stride, row_stride) with strides in entries; python/prefloss/_core.pyi
// documents every argument.
#include <pybind11/pybind11.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "device.h"
#include "tensors.h"
#include "torch_abi.h"
#ifdef PREFLOSS_CUDA
#include "cuda/kernels.h"
#endif

namespace prefloss::python {
namespace {

void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

void require_memory(const void* data, int64_t entries, const char* name) {
  if (data == nullptr && entries > 0)
    throw std::invalid_argument(std::string(name) + " has no memory (a null pointer); a plain dense tensor is needed");
}

Column column(const py::object& object) {
  if (object.is_none()) return {};
  const auto [data, dtype, stride, row_stride] = object.cast<std::tuple<uintptr_t, int, int64_t, int64_t>>();
  if (dtype < 0 || dtype >= kDtypes) throw std::invalid_argument("unknown dtype tag " + std::to_string(dtype));
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

Pairs pairs_of(const py::tuple& tuple) {
  const Pairs pairs = columns_of(tuple);
  const int64_t entries = pairs.rows * pairs.count;
  require_memory(pairs.chosen.data, entries, "chosen");
  require_memory(pairs.rejected.data, entries, "rejected");
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

Column upstream_of(const py::tuple& tuple, const Pairs& pairs) {
  const Column upstream = column(tuple);
  require_memory(upstream.data, pairs.rows * pairs.count, "the upstream gradient");
  return upstream;
}

// (whether on CUDA, threads, stream, address of the scratch memory)
Place place_of(const py::tuple& tuple) {
  const auto [cuda, threads, stream, scratch] = tuple.cast<std::tuple<bool, int, uintptr_t, uintptr_t>>();
  return {cuda, threads, address(stream), static_cast<double*>(address(scratch))};
}

void paired_forward(const py::tuple& inputs, const py::tuple& divisor, uintptr_t loss, const py::object& terms,
                    uintptr_t sums, bool statistics, const py::tuple& where) {
  const Pairs pairs = pairs_of(inputs);
  const Divisor by = divisor_of(divisor);
  const Place place = place_of(where);
  const ForwardOutputs outputs{address(loss), column(terms), static_cast<double*>(address(sums)), statistics};
  run_without_gil(pairs.rows * pairs.count, [&] { prefloss::paired_forward(pairs, by, outputs, place); });
}

void paired_backward(const py::tuple& inputs, const py::tuple& divisor, const py::tuple& upstream,
                     const py::object& grad_chosen, const py::object& grad_rejected, const py::object& grad_margin,
                     const py::tuple& where) {
  const Pairs pairs = pairs_of(inputs);
  const Divisor by = divisor_of(divisor);
  const Place place = place_of(where);
  const Column grad = upstream_of(upstream, pairs);
  const Gradients gradients{column(grad_chosen), column(grad_rejected), column(grad_margin)};
  run_without_gil(pairs.rows * pairs.count, [&] { prefloss::paired_backward(pairs, by, grad, gradients, place); });
}

void paired_double_backward(const py::tuple& inputs, const py::tuple& divisor, const py::tuple& upstream,
                            const py::object& towards_chosen, const py::object& towards_rejected,
                            const py::object& towards_margin, const py::object& grad_upstream,
                            const py::object& grad_chosen, const py::object& grad_rejected,
                            const py::object& grad_margin, const py::tuple& where) {
  const Pairs pairs = pairs_of(inputs);
  const Divisor by = divisor_of(divisor);
  const Place place = place_of(where);
  const Column grad = upstream_of(upstream, pairs), upstream_gradient = column(grad_upstream);
  const Gradients directions{column(towards_chosen), column(towards_rejected), column(towards_margin)};
  const Gradients gradients{column(grad_chosen), column(grad_rejected), column(grad_margin)};
  run_without_gil(pairs.rows * pairs.count, [&] {
    prefloss::paired_double_backward(pairs, by, grad, directions, upstream_gradient, gradients, place);
  });
}

// False where an index is out of range.
bool indexed_forward(const py::tuple& items, const py::tuple& inputs, const py::tuple& divisor, uintptr_t loss,
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

// (columns of the rewards and the ranks, rows, groups a row, their size, items, address of their offsets or 0, (beta,
// margin, label_smoothing, center_rewards_coefficient), whether ties count half, from how many items on a group is
// large)
Groups groups_of(const py::tuple& tuple) {
  const auto [rows, count, size, items, offsets] =
      py::tuple(tuple[py::slice(2, 7, 1)]).cast<std::tuple<int64_t, int64_t, int64_t, int64_t, uintptr_t>>();
  Groups groups{column(tuple[0]),
                column(tuple[1]),
                rows,
                count,
                size,
                items,
                static_cast<const int64_t*>(address(offsets)),
                {},
                tuple[8].cast<bool>(),
                tuple[9].cast<int64_t>()};
  const auto [beta, margin, label_smoothing, center] = tuple[7].cast<std::tuple<double, double, double, double>>();
  groups.options = {beta, margin, 1, label_smoothing, center};
  require_memory(groups.rewards.data, items, "rewards");
  return groups;
}

GroupUpstream upstream_of(const py::tuple& tuple) { return {column(tuple[0]), tuple[1].cast<bool>()}; }

// `average`: (column of the weights, whether over pairs, whether one loss a group, divisor). False where a rank is NaN.
bool grouped_forward(const py::tuple& inputs, const py::tuple& average, uintptr_t loss, uintptr_t factors,
                     uintptr_t sums, uintptr_t slopes, bool statistics, const py::tuple& where) {
  const Groups groups = groups_of(inputs);
  require_memory(groups.ranks.data, groups.items, "ranks");
  const GroupAverage how{column(average[0]), average[1].cast<bool>(), average[2].cast<bool>(), divisor_of(average[3])};
  const GroupOutputs outputs{address(loss), static_cast<double*>(address(factors)), static_cast<double*>(address(sums)),
                             address(slopes), statistics};
  const Place place = place_of(where);
  GroupStatus status{};
  run_without_gil(groups.items, [&] { status = prefloss::grouped_forward(groups, how, outputs, place); });
  return status == GroupStatus::kDone;
}

// `upstream`: (its column, whether one a group)
void grouped_backward(const py::tuple& inputs, uintptr_t slopes, const py::tuple& upstream, const py::tuple& gradient,
                      const py::tuple& where) {
  const Groups groups = groups_of(inputs);
  const GroupUpstream grad = upstream_of(upstream);
  const Column result = column(gradient);
  const Place place = place_of(where);
  run_without_gil(groups.items, [&] { prefloss::grouped_backward(groups, address(slopes), grad, result, place); });
}

void grouped_double_backward(const py::tuple& inputs, uintptr_t slopes, uintptr_t factors, const py::tuple& upstream,
                             const py::tuple& direction, const py::tuple& gradient, uintptr_t along,
                             const py::tuple& where) {
  const Groups groups = groups_of(inputs);
  require_memory(groups.ranks.data, groups.items, "ranks");
  const GroupUpstream grad = upstream_of(upstream);
  const Column towards = column(direction), result = column(gradient);
  const auto* const its_factors = static_cast<const double*>(address(factors));
  auto* const products = static_cast<double*>(address(along));
  const Place place = place_of(where);
  run_without_gil(groups.items, [&] {
    prefloss::grouped_double_backward(groups, address(slopes), its_factors, grad, towards, result, products, place);
  });
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

// (toolkit, architectures), or None where there are no CUDA kernels.
py::object cuda_build() {
#ifdef PREFLOSS_CUDA
  const int toolkit = cuda::toolkit();
  return py::make_tuple(std::to_string(toolkit / 1000) + "." + std::to_string(toolkit % 1000 / 10),
                        PREFLOSS_CUDA_ARCHITECTURES);
#else
  return py::none();
#endif
}

// Why no GPU can be used, or an empty string.
std::string cuda_unusable() {
#ifdef PREFLOSS_CUDA
  return cuda::unusable();
#else
  return "built without CUDA";
#endif
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled kernels of prefloss. Not public: arguments are not checked here.";
  module.attr("__version__") = PREFLOSS_VERSION;
  module.attr("compiler") = compiler();
  module.attr("cpu") = cpu::kernels().name;
  module.attr("cuda") = cuda_build();
  module.def("cuda_unusable", &cuda_unusable);
  module.def(
      "scratch_size",
      [](bool cuda, int rewards, int64_t rows, int64_t count) {
        return scratch_size(cuda, static_cast<Dtype>(rewards), rows, count);
      },
      py::arg("cuda"), py::arg("rewards"), py::arg("rows"), py::arg("count"));
  module.def("load_torch", &torch_abi::load, py::arg("library"));
  module.def("set_torch", &set_torch, py::arg("tensor"), py::arg("parameter"), py::arg("exchange_api"));
  module.def("tensors_accept", &tensors_accept, py::arg("rewards"), py::arg("rejected"), py::arg("layout"),
             py::arg("margin"), py::arg("weight"), py::arg("target"));
  module.def("tensors_forward", &tensors_forward, py::arg("rewards"), py::arg("rejected"), py::arg("layout"),
             py::arg("margin"), py::arg("weight"), py::arg("target"), py::arg("options"), py::arg("divisor"),
             py::arg("per_pair"), py::arg("loss"), py::arg("sums"), py::arg("statistics"), py::arg("threads"),
             py::arg("scratch"));
  module.def("tensors_backward", &tensors_backward, py::arg("grad"), py::arg("rewards"), py::arg("rejected"),
             py::arg("layout"), py::arg("margin"), py::arg("weight"), py::arg("target"), py::arg("options"),
             py::arg("divisor"), py::arg("per_pair"), py::arg("sums"), py::arg("grad_rewards"),
             py::arg("grad_rejected"), py::arg("grad_margin"), py::arg("threads"));
  module.def("default_forward", &default_forward, py::arg("chosen"), py::arg("rejected"), py::arg("loss"),
             py::arg("threads"), py::arg("scratch"));
  module.def("default_backward", &default_backward, py::arg("grad"), py::arg("chosen"), py::arg("rejected"),
             py::arg("grad_chosen"), py::arg("grad_rejected"), py::arg("threads"));
  module.def("paired_forward", &paired_forward, py::arg("pairs"), py::arg("divisor"), py::arg("loss"), py::arg("terms"),
             py::arg("sums"), py::arg("statistics"), py::arg("place"));
  module.def("paired_backward", &paired_backward, py::arg("pairs"), py::arg("divisor"), py::arg("upstream"),
             py::arg("grad_chosen"), py::arg("grad_rejected"), py::arg("grad_margin"), py::arg("place"));
  module.def("paired_double_backward", &paired_double_backward, py::arg("pairs"), py::arg("divisor"),
             py::arg("upstream"), py::arg("towards_chosen"), py::arg("towards_rejected"), py::arg("towards_margin"),
             py::arg("grad_upstream"), py::arg("grad_chosen"), py::arg("grad_rejected"), py::arg("grad_margin"),
             py::arg("place"));
  module.def("indexed_forward", &indexed_forward, py::arg("comparisons"), py::arg("pairs"), py::arg("divisor"),
             py::arg("loss"), py::arg("sums"), py::arg("statistics"), py::arg("slopes"), py::arg("threads"));
  module.def("runs_on_cuda", &runs_on_cuda, py::arg("cuda"));
  module.def("grouped_forward", &grouped_forward, py::arg("groups"), py::arg("average"), py::arg("loss"),
             py::arg("factors"), py::arg("sums"), py::arg("slopes"), py::arg("statistics"), py::arg("place"));
  module.def("grouped_backward", &grouped_backward, py::arg("groups"), py::arg("slopes"), py::arg("upstream"),
             py::arg("gradient"), py::arg("place"));
  module.def("grouped_double_backward", &grouped_double_backward, py::arg("groups"), py::arg("slopes"),
             py::arg("factors"), py::arg("upstream"), py::arg("direction"), py::arg("gradient"), py::arg("along"),
             py::arg("place"));
  module.def("grouped_scratch_size", &grouped_scratch_size, py::arg("cuda"), py::arg("rows"), py::arg("groups"),
             py::arg("items"), py::arg("statistics"));
}

}  // namespace prefloss::python
