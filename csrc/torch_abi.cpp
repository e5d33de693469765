#include "torch_abi.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <stdexcept>

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace prefloss {
namespace torch_abi {
namespace {

using Status = int32_t;
using Body = void (*)(int64_t begin, int64_t end, void* context);

// As torch's headers declare them.
struct {
  Status (*library_init_impl)(const char* name, const char* device, const char* file, uint32_t line, void** library);
  Status (*library_impl)(void* library, const char* name, Operator kernel);
  Status (*delete_tensor)(void* tensor);
  Status (*get_data_ptr)(void* tensor, void** data);
  Status (*get_dtype)(void* tensor, int32_t* dtype);
  Status (*get_device_type)(void* tensor, int32_t* type);
  Status (*get_device_index)(void* tensor, int32_t* index);
  Status (*get_dim)(void* tensor, int64_t* dimensions);
  Status (*get_sizes)(void* tensor, int64_t** sizes);
  Status (*get_strides)(void* tensor, int64_t** strides);
  Status (*empty_strided)(int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                          int32_t device_type, int32_t device_index, void** tensor);
  Status (*empty_strided_pinned)(int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                 int32_t device_type, int32_t device_index, void** tensor);
  Status (*copy)(void* tensor, void* source, int32_t non_blocking);
  Status (*tensor_from_blob)(void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides,
                             int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index, void** tensor);
  Status (*call_dispatcher)(const char* name, const char* overload, Value* stack);
  Status (*create_device_guard)(int32_t index, void** guard);
  Status (*delete_device_guard)(void* guard);
  Status (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
  Status (*get_num_threads)(uint32_t* threads);
  int32_t (*device_cpu)();
  int32_t (*device_cuda)();
  int32_t dtypes[kDtypes];  // torch's number of each Dtype
} torch;

#ifdef _WIN32
void* loaded(const std::string& library) { return reinterpret_cast<void*>(GetModuleHandleA(library.c_str())); }
void* symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}
#else
void* loaded(const std::string& library) { return dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD); }
void* symbol(void* library, const char* name) { return dlsym(library, name); }
#endif

struct Finder {
  void* library;

  template <typename Function>
  void operator()(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(symbol(library, name));
    if (function == nullptr) throw std::runtime_error(std::string("it has no function ") + name);
  }

  int32_t number(const char* name) const {
    int32_t (*function)() = nullptr;
    (*this)(function, name);
    return function();
  }
};

void check(Status status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string("torch could not ") + what);
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1)) strides[d] = stride;
  return strides;
}

template <typename Allocate>
Tensor allocated(const Allocate& allocate, const std::vector<int64_t>& sizes, Dtype dtype, int32_t type,
                 int32_t index) {
  const std::vector<int64_t> strides = contiguous_strides(sizes);
  void* handle = nullptr;
  check(allocate(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                 torch.dtypes[static_cast<int>(dtype)], type, index, &handle),
        "allocate a tensor");
  return Tensor(handle);
}

}  // namespace

void load(const std::string& library) {
  const Finder find{loaded(library)};
  if (find.library == nullptr) throw std::runtime_error("it is not loaded");
  find(torch.library_init_impl, "aoti_torch_library_init_impl");
  find(torch.library_impl, "aoti_torch_library_impl");
  find(torch.delete_tensor, "aoti_torch_delete_tensor_object");
  find(torch.get_data_ptr, "aoti_torch_get_data_ptr");
  find(torch.get_dtype, "aoti_torch_get_dtype");
  find(torch.get_device_type, "aoti_torch_get_device_type");
  find(torch.get_device_index, "aoti_torch_get_device_index");
  find(torch.get_dim, "aoti_torch_get_dim");
  find(torch.get_sizes, "aoti_torch_get_sizes");
  find(torch.get_strides, "aoti_torch_get_strides");
  find(torch.empty_strided, "aoti_torch_empty_strided");
  find(torch.empty_strided_pinned, "aoti_torch_empty_strided_pinned");
  find(torch.copy, "aoti_torch_copy_");
  find(torch.tensor_from_blob, "aoti_torch_create_tensor_from_blob");
  find(torch.call_dispatcher, "aoti_torch_call_dispatcher");
  find(torch.create_device_guard, "aoti_torch_create_device_guard");
  find(torch.delete_device_guard, "aoti_torch_delete_device_guard");
  find(torch.parallel_for, "torch_parallel_for");
  find(torch.get_num_threads, "torch_get_num_threads");
  find(torch.device_cpu, "aoti_torch_device_type_cpu");
  find(torch.device_cuda, "aoti_torch_device_type_cuda");
  constexpr const char* kNames[kDtypes] = {"float64", "float32", "bfloat16", "float16", "bool",
                                           "int64",   "int32",   "int16",    "int8",    "uint8"};
  for (int dtype = 0; dtype < kDtypes; dtype++)
    torch.dtypes[dtype] = find.number((std::string("aoti_torch_dtype_") + kNames[dtype]).c_str());
}

Tensor::~Tensor() {
  if (handle_ != nullptr) torch.delete_tensor(handle_);
}

void* Tensor::data() const {
  void* data = nullptr;
  check(torch.get_data_ptr(handle_, &data), "say where a tensor lies");
  return data;
}

Dtype Tensor::dtype() const {
  int32_t number = -1;
  check(torch.get_dtype(handle_, &number), "say a tensor's dtype");
  const int32_t* found = std::find(torch.dtypes, torch.dtypes + kDtypes, number);
  if (found == torch.dtypes + kDtypes) throw std::runtime_error("a tensor has a dtype that no kernel takes");
  return static_cast<Dtype>(found - torch.dtypes);
}

bool Tensor::is_cuda() const {
  int32_t type = -1;
  check(torch.get_device_type(handle_, &type), "say a tensor's device");
  return type == torch.device_cuda();
}

int Tensor::device_index() const {
  int32_t index = -1;
  check(torch.get_device_index(handle_, &index), "say a tensor's device");
  return index;
}

std::vector<int64_t> Tensor::sizes() const {
  int64_t dimensions = 0, *sizes = nullptr;
  check(torch.get_dim(handle_, &dimensions), "say a tensor's shape");
  check(torch.get_sizes(handle_, &sizes), "say a tensor's shape");
  return {sizes, sizes + dimensions};
}

std::vector<int64_t> Tensor::strides() const {
  int64_t dimensions = 0, *strides = nullptr;
  check(torch.get_dim(handle_, &dimensions), "say a tensor's strides");
  check(torch.get_strides(handle_, &strides), "say a tensor's strides");
  return {strides, strides + dimensions};
}

Tensor Tensor::empty(const std::vector<int64_t>& sizes, Dtype dtype, bool cuda, int device_index) {
  return allocated(torch.empty_strided, sizes, dtype, cuda ? torch.device_cuda() : torch.device_cpu(),
                   cuda ? device_index : 0);
}

Tensor Tensor::new_empty(const std::vector<int64_t>& sizes, Dtype dtype) const {
  return empty(sizes, dtype, is_cuda(), device_index());
}

Tensor Tensor::contiguous(Dtype dtype) const {
  Tensor copy = new_empty(sizes(), dtype);
  check(torch.copy(copy.handle_, handle_, 1), "copy a tensor");
  return copy;
}

Tensor Tensor::copied(const std::vector<int64_t>& values, bool cuda, int device_index) {
  const std::vector<int64_t> size{static_cast<int64_t>(values.size())};
  // From pinned memory the copy waits for nothing.
  Tensor host = cuda ? allocated(torch.empty_strided_pinned, size, Dtype::kInt64, torch.device_cpu(), 0)
                     : empty(size, Dtype::kInt64, false, 0);
  std::copy(values.begin(), values.end(), static_cast<int64_t*>(host.data()));
  if (!cuda) return host;
  Tensor copy = empty(size, Dtype::kInt64, true, device_index);
  check(torch.copy(copy.handle_, host.handle_, 1), "copy a tensor");
  return copy;
}

std::pair<Tensor, Tensor> Tensor::sorted(const int64_t* rows, const std::vector<int64_t>& sizes, bool cuda,
                                         int device_index) {
  void* handle = nullptr;
  check(torch.tensor_from_blob(const_cast<int64_t*>(rows), static_cast<int64_t>(sizes.size()), sizes.data(),
                               contiguous_strides(sizes).data(), 0, torch.dtypes[static_cast<int>(Dtype::kInt64)],
                               cuda ? torch.device_cuda() : torch.device_cpu(), cuda ? device_index : 0, &handle),
        "wrap a tensor's memory");
  // self, stable (optional: the address of the value, which torch deletes), dim, descending; then values, indices
  Value stack[] = {reinterpret_cast<Value>(handle), reinterpret_cast<Value>(new Value(1)), static_cast<Value>(-1), 0};
  check(torch.call_dispatcher("aten::sort", "stable", stack), "sort");
  return {Tensor(reinterpret_cast<void*>(stack[0])), Tensor(reinterpret_cast<void*>(stack[1]))};
}

Tensor Arguments::optional_tensor() {
  const Value* const value = reinterpret_cast<const Value*>(*next_++);
  if (value == nullptr) return Tensor();
  Tensor tensor(reinterpret_cast<void*>(*value));
  delete value;  // as torch's own header does it: the callee owns it
  return tensor;
}

Options Arguments::options(const Tensor& given) {
  double numbers[5];
  std::memcpy(numbers, next_, sizeof numbers);
  next_ += 5;
  if (given && (given.dtype() != Dtype::kFloat64 || given.sizes() != std::vector<int64_t>{5} || given.is_cuda()))
    throw std::invalid_argument("numbers must be five float64 on the CPU");
  const double* of = given ? static_cast<const double*>(given.data()) : numbers;
  return {of[0], of[1], of[2], of[3], of[4]};
}

std::string overload() {
  std::string name = "v" PREFLOSS_VERSION;
  std::replace_if(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

void register_kernel(const std::string& name, Operator kernel) {
  for (const char* device : {"CPU", "CUDA"}) {
    void* library = nullptr;  // kept: what it registers lives as long as it does
    check(torch.library_init_impl("prefloss", device, __FILE__, __LINE__, &library), "open the library of operators");
    for (const std::string& each : {name, "plain_" + name})
      check(torch.library_impl(library, (each + "." + overload()).c_str(), kernel), "register an operator");
  }
}

DeviceGuard::DeviceGuard(const Tensor& tensor) {
  if (tensor.is_cuda()) check(torch.create_device_guard(tensor.device_index(), &guard_), "switch to a device");
}

DeviceGuard::~DeviceGuard() {
  if (guard_ != nullptr) torch.delete_device_guard(guard_);
}

int threads() {
  uint32_t threads = 1;
  check(torch.get_num_threads(&threads), "say how many threads it has");
  return static_cast<int>(threads);
}

}  // namespace torch_abi

void parallel_for(int64_t count, int threads, void (*body)(int64_t begin, int64_t end, void* context), void* context) {
  if (threads > 1 && count > 1)
    torch_abi::check(torch_abi::torch.parallel_for(0, count, 1, body, context), "run a loop on its threads");
  else
    body(0, count, context);
}

}  // namespace prefloss
