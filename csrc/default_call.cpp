// The default call, read from the torch tensors themselves. With so few pairs as a batch of preferences has, what costs
// is not the kernel but asking Python for an address, a dtype, a shape; DLPack answers all of it in 20 ns.
#include "default_call.h"

#include <stdexcept>

#include "cpu/kernels.h"
#include "dlpack.h"

namespace prefloss {
namespace {

// Set once, at import.
struct {
  const dlpack::ExchangeApi* api = nullptr;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject* is_neg = nullptr;
} torch;

// A contiguous tensor in host memory, or count == -1.
struct Contiguous {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t count = -1;
  const int64_t* shape = nullptr;
  int32_t dimensions = 0;
};

bool reward_dtype(const dlpack::DataType& type, Dtype& dtype) {
  if (type.code == dlpack::kBFloat && type.bits == 16) return dtype = Dtype::kBFloat16, true;
  if (type.code != dlpack::kFloat) return false;
  if (type.bits == 32) return dtype = Dtype::kFloat32, true;
  if (type.bits == 64) return dtype = Dtype::kFloat64, true;
  if (type.bits == 16) return dtype = Dtype::kFloat16, true;
  return false;
}

// DLPack refuses what has no memory of its own (sparse, nested, meta, functorch's wrappers); the type tells subclasses,
// and the null pointer zero tensors. A negative-bit view it does not see: torch is asked.
Contiguous read(PyObject* object) {
  Contiguous result;
  if (Py_TYPE(object) != torch.tensor && Py_TYPE(object) != torch.parameter) return result;
  dlpack::Tensor tensor;
  if (torch.api->tensor_from_py_object(object, &tensor) != 0) return PyErr_Clear(), result;
  if (tensor.device.type != dlpack::kCpu || !reward_dtype(tensor.dtype, result.dtype)) return result;
  int64_t count = 1;
  for (int32_t d = tensor.dimensions - 1; d >= 0; d--) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != count) return result;
    count *= tensor.shape[d];
  }
  if (tensor.data == nullptr && count > 0) return result;
  PyObject* negative = PyObject_CallMethodNoArgs(object, torch.is_neg);
  const bool plain = negative == Py_False;
  Py_XDECREF(negative);
  if (!plain) return PyErr_Clear(), result;
  result.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  result.shape = tensor.shape;
  result.dimensions = tensor.dimensions;
  result.count = count;
  return result;
}

bool same_shape(const Contiguous& a, const Contiguous& b) {
  if (a.count < 0 || a.count != b.count || a.dtype != b.dtype || a.dimensions != b.dimensions) return false;
  for (int32_t d = 0; d < a.dimensions; d++)
    if (a.shape[d] != b.shape[d]) return false;
  return true;
}

Column column(const Contiguous& tensor) { return {tensor.data, tensor.dtype, 1, 0}; }

Pairs pairs_of(const Contiguous& chosen, const Contiguous& rejected) {
  return {column(chosen), column(rejected), {}, {}, {}, 1, chosen.count, {}};
}

Divisor mean_of(int64_t count) { return {count > 0 ? static_cast<double>(count) : 1.0, nullptr, 0, false}; }

}  // namespace

void set_torch(const py::type& tensor, const py::type& parameter, const py::object& exchange_api) {
  const auto* api =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(exchange_api.ptr(), dlpack::kCapsuleName));
  if (api == nullptr) throw py::error_already_set();
  if (api->header.major != dlpack::kMajorVersion) return;  // another ABI: every call takes the general way
  torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  torch.parameter = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  torch.is_neg = PyUnicode_InternFromString("is_neg");
  torch.api = api;
}

bool default_accepts(py::handle chosen, py::handle rejected) {
  return torch.api != nullptr && same_shape(read(chosen.ptr()), read(rejected.ptr()));
}

void default_forward(py::handle chosen, py::handle rejected, py::handle loss, int threads) {
  const Contiguous a = read(chosen.ptr()), b = read(rejected.ptr()), result = read(loss.ptr());
  if (!same_shape(a, b) || result.count != 1)
    throw std::invalid_argument("default_forward was given what default_accepts refuses");
  const Pairs pairs = pairs_of(a, b);
  const auto kernel = [&] {
    cpu::kernels().paired_forward(pairs, mean_of(a.count), {result.data, {}, nullptr, false},
                                  cpu::usable_threads(threads));
  };
  run_without_gil(a.count, kernel);
}

bool default_backward(py::handle upstream, py::handle chosen, py::handle rejected, py::handle grad_chosen,
                      py::handle grad_rejected, int threads) {
  const Contiguous g = read(upstream.ptr()), a = read(chosen.ptr()), b = read(rejected.ptr());
  if (g.count != 1 || !same_shape(a, b)) return false;
  Gradients gradients;
  if (!grad_chosen.is_none()) gradients.chosen = column(read(grad_chosen.ptr()));
  if (!grad_rejected.is_none()) gradients.rejected = column(read(grad_rejected.ptr()));
  const Pairs pairs = pairs_of(a, b);
  const auto kernel = [&] {
    cpu::kernels().paired_backward(pairs, mean_of(a.count), {g.data, g.dtype, 0, 0}, gradients,
                                   cpu::usable_threads(threads));
  };
  run_without_gil(a.count, kernel);
  return true;
}

}  // namespace prefloss
