// The Python module prefloss._core: it registers the functions of each layout, and says what was built. No arithmetic,
// and no libtorch.
#include <string>

#include "../cpu/kernels.h"
#include "views.h"
#ifdef PREFLOSS_CUDA
#include "../cuda/kernels.h"
#endif

namespace prefloss {
namespace {

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

// Nothing here needs the GIL: what is not constant is set once, at import (`torch` in views.cpp and torch_abi.cpp, the
// table of kernels), and a call has all else on its own stack.
PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  module.doc() = "The compiled kernels of prefloss. Not public: arguments are not checked here.";
  module.attr("__version__") = PREFLOSS_VERSION;
  module.attr("compiler") = compiler();
  module.attr("overload") = torch_abi::overload();
  const char* kernels = cpu::kernels().name;  // throws where the environment names none
  module.attr("cpu") = cpu::is_composed() ? "composed" : kernels;
  module.attr("cuda") = cuda_build();
  module.def("cuda_unusable", &cuda_unusable);
  module.def("set_torch", &set_torch, py::arg("tensor"), py::arg("parameter"), py::arg("exchange_api"),
             py::arg("library"));
  add_paired(module);
  add_grouped(module);
  add_indexed(module);
  add_evaluation(module);
  add_sums(module);
}

}  // namespace prefloss
