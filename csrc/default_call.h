// The default call over two torch tensors; see default_call.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

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

// What to recognise a plain tensor by. Until it is called, `default_accepts` is false.
void set_torch(const py::type& tensor, const py::type& parameter, const py::object& exchange_api);

// Whether both are plain, contiguous, of one shape and one reward dtype, in host memory.
bool default_accepts(py::handle chosen, py::handle rejected);

// The mean loss of tensors that were accepted, into `loss`, a tensor with one entry of the accumulation type.
void default_forward(py::handle chosen, py::handle rejected, py::handle loss, int threads);

// Its gradients, into tensors like chosen and rejected, or None. False, with nothing written, where the tensors given
// now (hooks and
// `.data` may have changed them) are not what the default call accepts.
bool default_backward(py::handle upstream, py::handle chosen, py::handle rejected, py::handle grad_chosen,
                      py::handle grad_rejected, int threads);

}  // namespace prefloss
