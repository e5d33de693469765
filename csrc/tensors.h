// The kernels over torch tensors as they are, without a copy and without asking Python for an address, a dtype, a
// shape; see tensors.cpp.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace prefloss {

namespace py = pybind11;

// Releasing the GIL costs more than a kernel over so few pairs.
constexpr int64_t kReleaseGil = 4096;

template <typename Kernel>
void run_without_gil(int64_t pairs, const Kernel& kernel) {
  if (pairs < kReleaseGil) return kernel();
  const py::gil_scoped_release released;
  kernel();
}

// How `rewards` and `rejected` hold the pairs: two tensors, or one and None.
enum Layout : int { kPaired, kHalves, kInterleaved };

// beta, margin, target, label_smoothing, center_rewards_coefficient
using OptionNumbers = std::tuple<double, double, double, double, double>;
constexpr OptionNumbers kDefault{1, 0, 1, 0, 0};

// What to recognise a plain tensor by. Until it is called, nothing is accepted.
void set_torch(const py::type& tensor, const py::type& parameter, const py::object& exchange_api);

// Whether all are plain tensors in the memory of the host, or of the current CUDA device (or None, for margin, weight
// and target), that a pointer and a stride describe, of dtypes and shapes that the public functions accept.
bool tensors_accept(py::handle rewards, py::handle rejected, int layout, py::handle margin, py::handle weight,
                    py::handle target);

// `divisor` is None for the mean's own. `loss` has one entry, or one a pair (reduction "none"); `sums` 16, or is None
// where nobody asks for statistics or for the total weight. `scratch` has scratch_size() float64, or is None for 0.
// Raises ValueError for what `tensors_accept` refuses.
void tensors_forward(py::handle rewards, py::handle rejected, int layout, py::handle margin, py::handle weight,
                     py::handle target, const OptionNumbers& options, std::optional<double> divisor, bool per_pair,
                     py::handle loss, py::handle sums, bool statistics, int threads, py::handle scratch);

// Gradients into new tensors like rewards, rejected and margin, or None. False, with nothing written, where the tensors
// given now (hooks and `.data` may have changed them) are not what `tensors_accept` accepts.
bool tensors_backward(py::handle grad, py::handle rewards, py::handle rejected, int layout, py::handle margin,
                      py::handle weight, py::handle target, const OptionNumbers& options, std::optional<double> divisor,
                      bool per_pair, py::handle sums, py::handle grad_rewards, py::handle grad_rejected,
                      py::handle grad_margin, int threads);

// The two for the default call, which has less to hand over.
void default_forward(py::handle chosen, py::handle rejected, py::handle loss, int threads, py::handle scratch);
bool default_backward(py::handle grad, py::handle chosen, py::handle rejected, py::handle grad_chosen,
                      py::handle grad_rejected, int threads);

}  // namespace prefloss
