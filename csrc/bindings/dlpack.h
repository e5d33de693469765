// The part of DLPack 1.3's C exchange API that reads a tensor without creating anything:
// torch.Tensor.__dlpack_c_exchange_api__ (torch >= 2.10). An ABI, so written down here as the standard says it:
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace prefloss::dlpack {

constexpr int32_t kCpu = 1, kCuda = 2;
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6;
constexpr uint32_t kMajorVersion = 1;
constexpr const char* kCapsuleName = "dlpack_exchange_api";

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t dimensions;
  DataType dtype;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeApi {
  struct {
    uint32_t major, minor;
    void* previous;
  } header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  int (*tensor_from_py_object)(void* object, Tensor* out);  // borrows; -1 and a Python error where it cannot
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace prefloss::dlpack
