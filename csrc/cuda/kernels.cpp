// What the CUDA runtime says, in words.
#include "kernels.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace prefloss::cuda {
namespace {

std::string described(int status) {
  const auto error = static_cast<cudaError_t>(status);
  return std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
}

}  // namespace

void check(int status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it again
  std::string message = "CUDA error " + described(status) + " when launching " + what;
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction)
    message += "; this build of prefloss has no code for this GPU (prefloss.build_info() names its architectures)";
  throw std::runtime_error(message);
}

bool assertion_failed(int status) {
  if (status != cudaErrorAssert) return false;
  cudaGetLastError();
  return true;
}

int current_device() {
  int device = -1;
  return cudaGetDevice(&device) == cudaSuccess ? device : -1;
}

std::string unusable() {
  int devices = 0;  // without a driver the call leaves it as it is
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) return cudaGetLastError(), described(status);
  return devices == 0 ? "no CUDA device" : "";
}

int toolkit() { return CUDART_VERSION; }

}  // namespace prefloss::cuda
