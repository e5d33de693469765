// With so few pairs as a batch of preferences has, what costs is not the kernel but asking Python for an address, a
// dtype, a shape. DLPack's exchange API answers all of it in 20 ns a tensor. Whatever is not plainly a strided tensor
// in host memory, or in that of the current CUDA device, is refused here, and takes the general way
// (python/prefloss/kernels.py, ops.py).
#include "tensors.h"

#include <stdexcept>

#include "device.h"
#include "dlpack.h"

namespace prefloss {
namespace {

// Set once, at import.
struct {
  const dlpack::ExchangeApi* api = nullptr;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject* is_neg = nullptr;
} torch;

// A tensor whose entries, in order, lie at one stride. `shape` is borrowed from the tensor.
struct View {
  dlpack::Device device;
  Column column;
  int64_t count = 0;
  const int64_t* shape = nullptr;
  int32_t dimensions = 0;
};

bool dtype_of(const dlpack::DataType& type, Dtype& dtype) {
  switch (type.code << 8 | type.bits) {
    case dlpack::kFloat << 8 | 64:
      return dtype = Dtype::kFloat64, true;
    case dlpack::kFloat << 8 | 32:
      return dtype = Dtype::kFloat32, true;
    case dlpack::kFloat << 8 | 16:
      return dtype = Dtype::kFloat16, true;
    case dlpack::kBFloat << 8 | 16:
      return dtype = Dtype::kBFloat16, true;
    case dlpack::kBool << 8 | 8:
      return dtype = Dtype::kBool, true;
    default:
      return false;
  }
}

// The one stride at which all entries follow each other, if there is one.
bool one_stride(const dlpack::Tensor& tensor, View& view) {
  int64_t count = 1, stride = 1;
  bool first = true;
  for (int32_t d = tensor.dimensions - 1; d >= 0; d--) {
    const int64_t size = tensor.shape[d];
    if (size == 0) return view.count = 0, view.column.stride = 1, true;
    if (size == 1) continue;
    if (first)
      stride = tensor.strides[d], first = false;
    else if (tensor.strides[d] != stride * count)
      return false;
    count *= size;
  }
  return view.count = count, view.column.stride = stride, true;
}

// DLPack refuses what has no memory of its own (sparse, nested, meta, functorch's wrappers); the type tells subclasses,
// and the null pointer zero tensors. A negative-bit view it does not see: torch is asked.
bool read(py::handle handle, View& view) {
  PyObject* object = handle.ptr();
  if (Py_TYPE(object) != torch.tensor && Py_TYPE(object) != torch.parameter) return false;
  dlpack::Tensor tensor;
  if (torch.api->tensor_from_py_object(object, &tensor) != 0) return PyErr_Clear(), false;
  if (tensor.device.type != dlpack::kCpu &&
      (tensor.device.type != dlpack::kCuda || tensor.device.id != current_cuda_device()))
    return false;
  if (!dtype_of(tensor.dtype, view.column.dtype) || !one_stride(tensor, view)) return false;
  if (tensor.data == nullptr && view.count > 0) return false;
  PyObject* negative = PyObject_CallMethodNoArgs(object, torch.is_neg);
  if (negative == nullptr) return PyErr_Clear(), false;
  Py_DECREF(negative);
  view.device = tensor.device;
  view.column.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.shape = tensor.shape;
  view.dimensions = tensor.dimensions;
  return negative == Py_False;
}

// The same, and on the same device as the rewards.
bool read_beside(const View& rewards, py::handle handle, View& view) {
  return read(handle, view) && view.device.type == rewards.device.type;
}

// Whether `shape` is that of the pairs: the rewards', with half as many along dimension 0 where two are stacked.
bool has_shape(const View& view, const View& rewards, int layout) {
  if (view.dimensions != rewards.dimensions) return false;
  for (int32_t d = 0; d < view.dimensions; d++) {
    const int64_t size = layout != kPaired && d == 0 ? rewards.shape[d] / 2 : rewards.shape[d];
    if (view.shape[d] != size) return false;
  }
  return true;
}

bool read_option(py::handle handle, const View& rewards, int layout, bool mask, Column& column) {
  if (handle.is_none()) return true;
  View view;
  if (!read_beside(rewards, handle, view) || !has_shape(view, rewards, layout)) return false;
  column = view.column;
  return column.dtype == rewards.column.dtype || column.dtype == Dtype::kFloat32 ||
         (mask && column.dtype == Dtype::kBool);
}

// The two parts of a tensor, or nothing where no stride leads from pair to pair.
bool split(const View& rewards, int layout, Column& chosen, Column& rejected) {
  if (rewards.dimensions == 0 || rewards.shape[0] % 2 != 0) return false;
  if (layout == kInterleaved && rewards.count != rewards.shape[0]) return false;
  const int64_t second = layout == kInterleaved ? 1 : rewards.count / 2;
  static constexpr int64_t kSizes[] = {8, 4, 2, 2, 1};
  chosen = rejected = rewards.column;
  if (layout == kInterleaved) chosen.stride = rejected.stride = 2 * rewards.column.stride;
  if (rewards.count > 0)
    rejected.data = static_cast<char*>(chosen.data) +
                    second * rewards.column.stride * kSizes[static_cast<int>(rewards.column.dtype)];
  return true;
}

// Where a gradient goes, if it is wanted: one column, or the two parts of a stacked one.
bool read_output(const View& rewards, py::handle handle, int layout, Column& first, Column& second) {
  if (handle.is_none()) return true;
  View view;
  if (!read_beside(rewards, handle, view)) return false;
  if (layout != kPaired) return split(view, layout, first, second);
  return first = view.column, true;
}

bool read_rewards(py::handle rewards, py::handle rejected, int layout, View& view, Column& first, Column& second) {
  if (torch.api == nullptr || !read(rewards, view) || view.column.dtype == Dtype::kBool) return false;
  if (layout != kPaired) return split(view, layout, first, second);
  View other;
  if (!read_beside(view, rejected, other) || other.column.dtype != view.column.dtype ||
      !has_shape(other, view, kPaired))
    return false;
  first = view.column, second = other.column;
  return true;
}

bool read_pairs(py::handle rewards, py::handle rejected, int layout, py::handle margin, py::handle weight,
                py::handle target, View& view, Pairs& pairs) {
  if (!read_rewards(rewards, rejected, layout, view, pairs.chosen, pairs.rejected)) return false;
  pairs.count = layout == kPaired ? view.count : view.count / 2;
  return read_option(margin, view, layout, false, pairs.margin) &&
         read_option(weight, view, layout, true, pairs.weight) &&
         read_option(target, view, layout, false, pairs.target);
}

Dtype accumulation_dtype(Dtype rewards) { return rewards == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32; }

Options options_of(const OptionNumbers& numbers) {
  const auto [beta, margin, target, label_smoothing, center] = numbers;
  return {beta, margin, target, label_smoothing, center};
}

Divisor divisor_of(const Pairs& pairs, std::optional<double> number, const double* sums) {
  if (number) return {*number, nullptr, 0, false};
  if (pairs.weight) return {1, sums ? sums + kWeight : nullptr, kSums, true};
  return {pairs.count > 0 ? static_cast<double>(pairs.count) : 1.0, nullptr, 0, false};
}

// The sums of a call, if there are any: kSums contiguous float64.
bool read_sums(const View& rewards, py::handle handle, double*& sums) {
  if (handle.is_none()) return true;
  View view;
  if (!read_beside(rewards, handle, view) || view.count != kSums || view.column.stride != 1 ||
      view.column.dtype != Dtype::kFloat64)
    return false;
  return sums = static_cast<double*>(view.column.data), true;
}

// The rewards' device, on torch's current stream there.
Place place_of(const View& rewards, int threads) {
  Place place{rewards.device.type == dlpack::kCuda, threads};
  if (place.cuda && torch.api->current_work_stream(rewards.device.type, rewards.device.id, &place.stream) != 0)
    throw py::error_already_set();
  return place;
}

// The memory for partial sums, if there is enough of it.
bool read_scratch(const View& rewards, py::handle handle, const Pairs& pairs, Place& place) {
  const int64_t needed = scratch_size(place.cuda, pairs.chosen.dtype, pairs.rows, pairs.count);
  if (needed == 0) return true;
  View view;
  if (!read_beside(rewards, handle, view) || view.count < needed || view.column.stride != 1 ||
      view.column.dtype != Dtype::kFloat64)
    return false;
  return place.scratch = static_cast<double*>(view.column.data), true;
}

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

bool tensors_accept(py::handle rewards, py::handle rejected, int layout, py::handle margin, py::handle weight,
                    py::handle target) {
  View view;
  Pairs pairs;
  return read_pairs(rewards, rejected, layout, margin, weight, target, view, pairs);
}

void tensors_forward(py::handle rewards, py::handle rejected, int layout, py::handle margin, py::handle weight,
                     py::handle target, const OptionNumbers& options, std::optional<double> divisor, bool per_pair,
                     py::handle loss, py::handle sums, bool statistics, int threads, py::handle scratch) {
  Pairs pairs;
  View view, result;
  ForwardOutputs outputs;
  if (!read_pairs(rewards, rejected, layout, margin, weight, target, view, pairs) || !read_beside(view, loss, result) ||
      !read_sums(view, sums, outputs.sums) || result.count != (per_pair ? pairs.count : 1) ||
      result.column.dtype != accumulation_dtype(pairs.chosen.dtype))
    throw std::invalid_argument("tensors_forward was given what tensors_accept refuses");
  Place place = place_of(view, threads);
  if (!read_scratch(view, scratch, pairs, place)) throw std::invalid_argument("scratch is too small");
  pairs.options = options_of(options);
  (per_pair ? outputs.terms.data : outputs.loss) = result.column.data;
  outputs.terms.stride = 1;
  outputs.statistics = statistics;
  const Divisor by = divisor_of(pairs, divisor, nullptr);
  run_without_gil(pairs.count, [&] { paired_forward(pairs, by, outputs, place); });
}

bool tensors_backward(py::handle grad, py::handle rewards, py::handle rejected, int layout, py::handle margin,
                      py::handle weight, py::handle target, const OptionNumbers& options, std::optional<double> divisor,
                      bool per_pair, py::handle sums, py::handle grad_rewards, py::handle grad_rejected,
                      py::handle grad_margin, int threads) {
  Pairs pairs;
  View view, upstream;
  double* totals = nullptr;
  if (!read_pairs(rewards, rejected, layout, margin, weight, target, view, pairs) ||
      !read_beside(view, grad, upstream) || !read_sums(view, sums, totals) ||
      upstream.count != (per_pair ? pairs.count : 1) || upstream.column.dtype != accumulation_dtype(pairs.chosen.dtype))
    return false;
  pairs.options = options_of(options);
  if (!per_pair) upstream.column.stride = 0;
  Gradients gradients;
  if (!read_output(view, grad_rewards, layout, gradients.chosen, gradients.rejected) ||
      !read_output(view, grad_rejected, kPaired, gradients.rejected,
                   gradients.rejected) ||  // None where rewards are stacked
      !read_output(view, grad_margin, kPaired, gradients.margin, gradients.margin))
    return false;
  const Divisor by = divisor_of(pairs, divisor, totals);
  const Place place = place_of(view, threads);
  run_without_gil(pairs.count, [&] { paired_backward(pairs, by, upstream.column, gradients, place); });
  return true;
}

void default_forward(py::handle chosen, py::handle rejected, py::handle loss, int threads, py::handle scratch) {
  const py::none none;
  tensors_forward(chosen, rejected, kPaired, none, none, none, kDefault, std::nullopt, false, loss, none, false,
                  threads, scratch);
}

bool default_backward(py::handle grad, py::handle chosen, py::handle rejected, py::handle grad_chosen,
                      py::handle grad_rejected, int threads) {
  const py::none none;
  return tensors_backward(grad, chosen, rejected, kPaired, none, none, none, kDefault, std::nullopt, false, none,
                          grad_chosen, grad_rejected, none, threads);
}

}  // namespace prefloss
