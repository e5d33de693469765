// torch's stable C ABI (torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h, torch >= 2.10):
// operators, tensors and threads. Its functions are found at import in the torch that Python has loaded. So nothing of
// torch is needed to build, nothing of it is linked, and one build serves every torch from 2.10 on.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pairs.h"

namespace prefloss {

// Calls body(begin, end, context) for parts of [0, count), on torch's threads; in place where `threads` is 1.
void parallel_for(int64_t count, int threads, void (*body)(int64_t begin, int64_t end, void* context), void* context);

namespace torch_abi {

// `library`: the path of libtorch_cpu. Throws std::runtime_error, naming what is missing.
void load(const std::string& library);

// torch's StableIValue: the bits of a number or a bool, a tensor's handle, or, for an optional argument, null or the
// address of such a value.
using Value = uint64_t;

// A tensor that this object owns a reference to.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(void* handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor();

  explicit operator bool() const { return handle_ != nullptr; }
  Value release() { return reinterpret_cast<Value>(std::exchange(handle_, nullptr)); }

  void* data() const;
  Dtype dtype() const;
  bool is_cuda() const;
  int device_index() const;
  std::vector<int64_t> sizes() const;
  std::vector<int64_t> strides() const;

  // Without values, contiguous, on the host or on a CUDA device; or where this tensor is.
  static Tensor empty(const std::vector<int64_t>& sizes, Dtype dtype, bool cuda, int device_index);
  Tensor new_empty(const std::vector<int64_t>& sizes, Dtype dtype) const;
  // A copy in contiguous memory, of this dtype.
  Tensor contiguous(Dtype dtype) const;
  // Host memory's entries on a device; nothing is waited for.
  static Tensor copied(const std::vector<int64_t>& values, bool cuda, int device_index);
  // Each row of contiguous int64 in ascending order, and from where in its row each entry is; equal ones as they were.
  static std::pair<Tensor, Tensor> sorted(const int64_t* rows, const std::vector<int64_t>& sizes, bool cuda,
                                          int device_index);

 private:
  void* handle_ = nullptr;
};

// An operator's arguments, in the order of its schema. Every tensor must be taken: it is owned then.
class Arguments {
 public:
  explicit Arguments(const Value* stack) : next_(stack) {}
  Tensor tensor() { return Tensor(reinterpret_cast<void*>(*next_++)); }
  Tensor optional_tensor();
  int64_t integer() { return static_cast<int64_t>(*next_++); }
  // Five numbers; `given` has them where they change from call to call under a compiler.
  Options options(const Tensor& given);
  bool boolean() { return *next_++ != 0; }

 private:
  const Value* next_;
};

using Operator = void (*)(Value* stack, uint64_t inputs, uint64_t outputs);

// The overload of this version's operators: v1_2_3.
std::string overload();

// Registers the kernel of the operators prefloss::`name` and prefloss::plain_`name`, on the CPU and on CUDA, for as
// long as the process lives.
void register_kernel(const std::string& name, Operator kernel);

// The device of a tensor as the current one, for as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& tensor);
  DeviceGuard(const DeviceGuard&) = delete;
  ~DeviceGuard();

 private:
  void* guard_ = nullptr;
};

// So many threads does a loop of this thread take.
int threads();

}  // namespace torch_abi
}  // namespace prefloss
