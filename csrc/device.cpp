// Hands a call to the kernels of its device.
#include "device.h"

#include <stdexcept>

#include "cpu/kernels.h"
#ifdef PREFLOSS_CUDA
#include "cuda/kernels.h"
#endif

namespace prefloss {
namespace {

// tests/cuda_on_host runs the CUDA kernels on the CPU, over the CPU's tensors.
bool on_cuda([[maybe_unused]] bool cuda) {
#ifdef PREFLOSS_CUDA_ON_HOST
  return true;
#else
  return cuda;
#endif
}

#ifdef PREFLOSS_CUDA
cuda::Launch launch_of(const Place& place, const Pairs& pairs, bool sums) {
  if (sums && place.scratch == nullptr && cuda::scratch_size(pairs.chosen.dtype, pairs.rows, pairs.count) > 0)
    throw std::invalid_argument("no memory was given for partial sums");
  return {place.stream, place.scratch};
}
#else
[[noreturn]] void without_cuda() { throw std::runtime_error("this build of prefloss has no CUDA kernels"); }
#endif

}  // namespace

#ifdef PREFLOSS_CUDA

int64_t scratch_size(bool cuda, Dtype rewards, int64_t rows, int64_t count) {
  return on_cuda(cuda) ? cuda::scratch_size(rewards, rows, count) : 0;
}

int current_cuda_device() { return cuda::current_device(); }

#else

int64_t scratch_size(bool cuda, Dtype, int64_t, int64_t) {
  if (cuda) without_cuda();
  return 0;
}

int current_cuda_device() { return -1; }

#endif

void paired_forward(const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs, const Place& place) {
  if (!on_cuda(place.cuda))
    return cpu::kernels().paired_forward(pairs, divisor, outputs, cpu::usable_threads(place.threads));
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::paired_forward(pairs, divisor, outputs, launch_of(place, pairs, true)), "the forward pass");
#else
  without_cuda();
#endif
}

void paired_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& gradients,
                     const Place& place) {
  if (!on_cuda(place.cuda))
    return cpu::kernels().paired_backward(pairs, divisor, upstream, gradients, cpu::usable_threads(place.threads));
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::paired_backward(pairs, divisor, upstream, gradients, launch_of(place, pairs, false)),
              "the backward pass");
#else
  without_cuda();
#endif
}

void paired_double_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream,
                            const Gradients& directions, const Column& upstream_gradient, const Gradients& gradients,
                            const Place& place) {
  if (!on_cuda(place.cuda))
    return cpu::kernels().paired_double_backward(pairs, divisor, upstream, directions, upstream_gradient, gradients,
                                                 cpu::usable_threads(place.threads));
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::paired_double_backward(pairs, divisor, upstream, directions, upstream_gradient, gradients,
                                           launch_of(place, pairs, true)),
              "the double backward pass");
#else
  without_cuda();
#endif
}

}  // namespace prefloss
