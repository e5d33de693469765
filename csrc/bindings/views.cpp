#include "views.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

#include "../storage.h"
#include "dlpack.h"

namespace prefloss {
namespace {

// Set once, at import.
struct {
  const dlpack::ExchangeApi* api = nullptr;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject* is_neg = nullptr;
} torch;

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
    case dlpack::kInt << 8 | 64:
      return dtype = Dtype::kInt64, true;
    case dlpack::kInt << 8 | 32:
      return dtype = Dtype::kInt32, true;
    case dlpack::kInt << 8 | 16:
      return dtype = Dtype::kInt16, true;
    case dlpack::kInt << 8 | 8:
      return dtype = Dtype::kInt8, true;
    case dlpack::kUInt << 8 | 8:
      return dtype = Dtype::kUInt8, true;
    default:
      return false;
  }
}

// The one stride at which the entries of the dimensions [begin, end) follow each other, if there is one.
bool one_stride(const int64_t* sizes, const int64_t* strides, int64_t begin, int64_t end, int64_t& stride) {
  int64_t count = 1;
  bool first = true;
  for (int64_t d = end - 1; d >= begin; d--) {
    if (sizes[d] == 1) continue;
    if (first)
      stride = strides[d], first = false;
    else if (strides[d] != stride * count)
      return false;
    count *= sizes[d];
  }
  return true;
}

// Whether torch would take longer to copy them, and the memory is the host's.
bool are_few(const View& view) { return !view.cuda && view.count() <= 4096; }

size_t bytes_of(const View& view) { return static_cast<size_t>(view.count() * kBytes[static_cast<int>(view.dtype)]); }

// Between the entries from this dimension on, `there`, and contiguous ones. Returns the next contiguous one.
template <bool kBack, size_t kSize>
char* copy_entries(const View& view, int64_t dimension, char* there, char* here) {
  const int64_t size = view.sizes[dimension], stride = view.strides[dimension] * static_cast<int64_t>(kSize);
  for (int64_t i = 0; i < size; i++, there += stride) {
    if (dimension + 1 < view.dimensions) {
      here = copy_entries<kBack, kSize>(view, dimension + 1, there, here);
      continue;
    }
    std::memcpy(kBack ? there : here, kBack ? here : there, kSize);
    here += kSize;
  }
  return here;
}

template <bool kBack>
void copy_entries(const View& view, char* here) {
  char* const there = static_cast<char*>(view.data);
  switch (kBytes[static_cast<int>(view.dtype)]) {
    case 8:
      return void(copy_entries<kBack, 8>(view, 0, there, here));
    case 4:
      return void(copy_entries<kBack, 4>(view, 0, there, here));
    case 2:
      return void(copy_entries<kBack, 2>(view, 0, there, here));
    default:
      return void(copy_entries<kBack, 1>(view, 0, there, here));
  }
}

}  // namespace

int64_t View::count(int64_t from) const {
  return std::accumulate(sizes + from, sizes + dimensions, int64_t{1}, std::multiplies<int64_t>());
}

bool View::has_shape_of(const View& other) const {
  return dimensions == other.dimensions && std::equal(sizes, sizes + dimensions, other.sizes);
}

bool set_torch(const py::type& tensor, const py::type& parameter, const py::object& exchange_api,
               const std::string& library) {
  if (torch.api != nullptr) return false;
  const auto* api =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(exchange_api.ptr(), dlpack::kCapsuleName));
  if (api == nullptr) throw py::error_already_set();
  if (api->header.major != dlpack::kMajorVersion)
    throw std::runtime_error("it has another version of DLPack's exchange API: " + std::to_string(api->header.major));
  torch_abi::load(library);
  register_paired();
  register_grouped();
  torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  torch.parameter = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  torch.is_neg = PyUnicode_InternFromString("is_neg");
  torch.api = api;
  return true;
}

bool is_tensor(py::handle handle) {
  return Py_TYPE(handle.ptr()) == torch.tensor || Py_TYPE(handle.ptr()) == torch.parameter;
}

// DLPack refuses what has no memory of its own (sparse, nested, meta, functorch's wrappers); the type tells subclasses,
// and the null pointer zero tensors.
bool read_result(py::handle handle, View& view) {
  if (!is_tensor(handle)) return false;
  dlpack::Tensor tensor;
  if (torch.api->tensor_from_py_object(handle.ptr(), &tensor) != 0) return PyErr_Clear(), false;
  view.cuda = tensor.device.type == dlpack::kCuda;
  if (tensor.device.type != dlpack::kCpu && (!view.cuda || tensor.device.id != current_cuda_device())) return false;
  if (!dtype_of(tensor.dtype, view.dtype)) return false;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.device_index = tensor.device.id;
  view.dimensions = tensor.dimensions;
  view.sizes = tensor.shape;
  view.strides = tensor.strides;
  return tensor.data != nullptr || view.count() == 0;
}

// A negative-bit view DLPack does not see: torch is asked.
bool read(py::handle handle, View& view) {
  if (!read_result(handle, view)) return false;
  PyObject* const negative = PyObject_CallMethodNoArgs(handle.ptr(), torch.is_neg);
  if (negative == nullptr) return PyErr_Clear(), false;
  Py_DECREF(negative);
  return negative == Py_False;
}

Fit as_column(const View& view, int64_t batch, Column& column) {
  column = {view.data, view.dtype, 1, 0};
  if (view.count() == 0) {
    static char nothing;  // a tensor without entries is given too, whether it has memory or not
    if (!column) column.data = &nothing;
    return Fit::kYes;
  }
  const bool fits = one_stride(view.sizes, view.strides, batch, view.dimensions, column.stride) &&
                    one_stride(view.sizes, view.strides, 0, batch, column.row_stride);
  return fits ? Fit::kYes : Fit::kAfterCopy;
}

Fit Copies::gather(const View& view, Column& column) {
  const Fit fit = as_column(view, 0, column);
  if (fit != Fit::kAfterCopy || !are_few(view)) return fit;
  if (!are_read_) return Fit::kYes;
  std::vector<char>& entries = inputs_.emplace_back(Copy{view, std::vector<char>(bytes_of(view))}).entries;
  copy_entries<false>(view, entries.data());
  column = {entries.data(), view.dtype, 1, 0};
  return Fit::kYes;
}

Fit Copies::make_room(const View& result, Column& column) {
  const Fit fit = as_column(result, 0, column);
  if (fit != Fit::kAfterCopy || !are_few(result)) return fit;
  std::vector<char>& entries = results_.emplace_back(Copy{result, std::vector<char>(bytes_of(result))}).entries;
  column = {entries.data(), result.dtype, 1, 0};
  return Fit::kYes;
}

void Copies::scatter() {
  for (Copy& result : results_) copy_entries<true>(result.view, result.entries.data());
}

void* output(py::handle handle, Dtype dtype, int64_t count) {
  View view;
  Column column;
  if (handle.is_none()) return nullptr;
  if (!read_result(handle, view) || view.dtype != dtype || view.count() != count ||
      as_column(view, 0, column) != Fit::kYes || (count > 1 && column.stride != 1))
    throw std::invalid_argument("a result must be contiguous, of the right dtype and size");
  return view.data;
}

double number_of(const View& view) {
  const void* const data = view.data;
  switch (view.dtype) {
    case Dtype::kFloat64:
      return *static_cast<const double*>(data);
    case Dtype::kFloat32:
      return static_cast<double>(*static_cast<const float*>(data));
    case Dtype::kBFloat16:
      return static_cast<double>(widen(*static_cast<const BFloat16*>(data)));
    case Dtype::kFloat16:
      return static_cast<double>(widen(*static_cast<const Float16*>(data)));
    case Dtype::kInt64:
      return static_cast<double>(*static_cast<const int64_t*>(data));
    case Dtype::kInt32:
      return *static_cast<const int32_t*>(data);
    case Dtype::kInt16:
      return *static_cast<const int16_t*>(data);
    case Dtype::kInt8:
      return *static_cast<const int8_t*>(data);
    case Dtype::kBool:
    case Dtype::kUInt8:
      return *static_cast<const uint8_t*>(data);
  }
  return 0;
}

const torch_abi::Tensor& Columns::keep(torch_abi::Tensor&& tensor) {
  alive_.push_back(std::move(tensor));
  return alive_.back();
}

void Columns::check(const torch_abi::Tensor& tensor, const char* name, int64_t entries) const {
  const auto refuse = [&](const std::string& what) {
    throw std::invalid_argument(std::string(name) + what + "; was it changed between forward and backward?");
  };
  const int64_t given = product(tensor.sizes());
  if (given != entries)
    refuse(" does not fit the rewards: it has " + std::to_string(given) + " entries where " + std::to_string(entries) +
           " are needed");
  const bool cuda = rewards != nullptr && rewards->is_cuda();
  if (tensor.is_cuda() != cuda || (cuda && tensor.device_index() != rewards->device_index()))
    refuse(std::string(" must be on ") + (cuda ? "the device of the rewards" : "the CPU"));
  if (entries > 0 && tensor.data() == nullptr)
    refuse(" has no memory (a null pointer), a plain dense tensor is needed");
}

Column Columns::of(torch_abi::Tensor&& tensor, const char* name, int64_t entries, std::initializer_list<Dtype> dtypes) {
  if (!tensor) return {};
  check(tensor, name, entries);
  if (std::find(dtypes.begin(), dtypes.end(), tensor.dtype()) == dtypes.end())
    throw std::invalid_argument(std::string(name) +
                                " has a dtype that does not fit the rewards'; was it changed between "
                                "forward and backward?");
  return of(keep(std::move(tensor)));
}

Column Columns::of(const torch_abi::Tensor& kept) {
  const std::vector<int64_t> sizes = kept.sizes(), strides = kept.strides();
  View view;
  view.data = kept.data();
  view.dtype = kept.dtype();
  view.dimensions = static_cast<int64_t>(sizes.size());
  view.sizes = sizes.data();
  view.strides = strides.data();
  Column column;
  return as_column(view, batch, column) == Fit::kYes ? column : of(keep(kept.contiguous(kept.dtype())));
}

Place place_of(bool cuda, int device_index, int64_t entries) {
  // Fewer pairs are done before a second thread would have started.
  Place place{cuda, entries < kParallelPairs ? 1 : torch_abi::threads()};
  if (cuda && torch.api->current_work_stream(dlpack::kCuda, device_index, &place.stream) != 0)
    throw std::runtime_error("torch has no current stream for a CUDA device");
  return place;
}

torch_abi::Tensor scratch_for(Place& place, int device_index, int64_t sums) {
  if (sums == 0) return torch_abi::Tensor();
  torch_abi::Tensor memory = torch_abi::Tensor::empty({sums}, Dtype::kFloat64, place.cuda, device_index);
  place.scratch = static_cast<double*>(memory.data());
  return memory;
}

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>());
}

}  // namespace prefloss
