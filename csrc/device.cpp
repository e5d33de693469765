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
// `scratch`: how much of it is needed.
cuda::Launch launch_of(const Place& place, int64_t scratch) {
  if (place.scratch == nullptr && scratch > 0) throw std::invalid_argument("no memory was given for partial sums");
  return {place.stream, place.scratch};
}

int64_t scratch_of(const Pairs& pairs) { return cuda::scratch_size(pairs.chosen.dtype, pairs.rows, pairs.count); }
#else
[[noreturn]] void without_cuda() { throw std::runtime_error("this build of prefloss has no CUDA kernels"); }
#endif

}  // namespace

#ifdef PREFLOSS_CUDA

int64_t scratch_size(bool cuda, const Pairs& pairs) { return on_cuda(cuda) ? scratch_of(pairs) : 0; }

int64_t grouped_scratch_size(bool cuda, const Groups& groups, bool statistics) {
  return on_cuda(cuda) ? cuda::grouped_scratch_size(groups, statistics) : 0;
}

bool wants_order(bool cuda, const Groups& groups, bool statistics) {
  return on_cuda(cuda) && cuda::are_long_lists(groups, statistics);
}

int64_t indexed_scratch_size(bool cuda, const Comparisons& comparisons, const Pairs& pairs, bool slopes) {
  return on_cuda(cuda) ? cuda::indexed_scratch_size(comparisons, pairs, slopes) : 0;
}

int current_cuda_device() { return cuda::current_device(); }

#else

int64_t scratch_size(bool cuda, const Pairs&) {
  if (cuda) without_cuda();
  return 0;
}

int64_t grouped_scratch_size(bool cuda, const Groups&, bool) { return scratch_size(cuda, Pairs()); }

bool wants_order(bool, const Groups&, bool) { return false; }

int64_t indexed_scratch_size(bool cuda, const Comparisons&, const Pairs&, bool) { return scratch_size(cuda, Pairs()); }

int current_cuda_device() { return -1; }

#endif

void paired_forward(const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs, const Place& place) {
  if (!on_cuda(place.cuda)) return cpu::kernels().paired_forward(pairs, divisor, outputs, place.threads);
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::paired_forward(pairs, divisor, outputs, launch_of(place, scratch_of(pairs))), "the forward pass");
#else
  without_cuda();
#endif
}

void paired_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& gradients,
                     const Place& place) {
  if (!on_cuda(place.cuda)) return cpu::kernels().paired_backward(pairs, divisor, upstream, gradients, place.threads);
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::paired_backward(pairs, divisor, upstream, gradients, launch_of(place, 0)), "the backward pass");
#else
  without_cuda();
#endif
}

void paired_double_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream,
                            const Gradients& directions, const Column& upstream_gradient, const Gradients& gradients,
                            const Place& place) {
  if (!on_cuda(place.cuda))
    return cpu::kernels().paired_double_backward(pairs, divisor, upstream, directions, upstream_gradient, gradients,
                                                 place.threads);
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::paired_double_backward(pairs, divisor, upstream, directions, upstream_gradient, gradients,
                                           launch_of(place, scratch_of(pairs))),
              "the double backward pass");
#else
  without_cuda();
#endif
}

bool indexed_forward(const Comparisons& comparisons, const Pairs& pairs, const Divisor& divisor,
                     const ForwardOutputs& outputs, void* slopes, const Place& place) {
  if (!on_cuda(place.cuda))
    return cpu::kernels().indexed_forward(comparisons, pairs, divisor, outputs, slopes, place.threads);
#ifdef PREFLOSS_CUDA
  const int64_t scratch = cuda::indexed_scratch_size(comparisons, pairs, slopes != nullptr);
  const int status = cuda::indexed_forward(comparisons, pairs, divisor, outputs, slopes, launch_of(place, scratch));
  if (cuda::assertion_failed(status)) return false;
  cuda::check(status, "the forward pass of comparisons by index");
  return true;
#else
  without_cuda();
#endif
}

GroupStatus grouped_forward(const Groups& groups, const GroupAverage& average, const GroupOutputs& outputs,
                            const Place& place) {
  if (!on_cuda(place.cuda)) return cpu::kernels().grouped_forward(groups, average, outputs, place.threads);
#ifdef PREFLOSS_CUDA
  const int64_t scratch = cuda::grouped_scratch_size(groups, outputs.statistics);
  cuda::check(cuda::grouped_forward(groups, average, outputs, launch_of(place, scratch)), "the forward pass of groups");
  return GroupStatus::kDone;
#else
  without_cuda();
#endif
}

void list_keys([[maybe_unused]] const Groups& groups, [[maybe_unused]] const int64_t* sorted_ranks,
               [[maybe_unused]] const int64_t* order, [[maybe_unused]] int64_t* keys,
               [[maybe_unused]] const Place& place) {
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::list_keys(groups, sorted_ranks, order, keys, launch_of(place, 0)), "the keys of long lists");
#else
  without_cuda();
#endif
}

void grouped_backward(const Groups& groups, const void* slopes, const GroupUpstream& upstream, const Column& result,
                      const Place& place) {
  if (!on_cuda(place.cuda)) return cpu::kernels().grouped_backward(groups, slopes, upstream, result, place.threads);
#ifdef PREFLOSS_CUDA
  cuda::check(cuda::grouped_backward(groups, slopes, upstream, result, launch_of(place, 0)),
              "the backward pass of groups");
#else
  without_cuda();
#endif
}

GroupStatus grouped_double_backward(const Groups& groups, const void* slopes, const double* factors,
                                    const GroupUpstream& upstream, const Column& direction, const Column& gradient,
                                    double* along, const Place& place) {
  if (!on_cuda(place.cuda))
    return cpu::kernels().grouped_double_backward(groups, slopes, factors, upstream, direction, gradient, along,
                                                  place.threads);
#ifdef PREFLOSS_CUDA
  cuda::check(
      cuda::grouped_double_backward(groups, slopes, factors, upstream, direction, gradient, along, launch_of(place, 0)),
      "the double backward pass of groups");
  return GroupStatus::kDone;
#else
  without_cuda();
#endif
}

bool runs_on_cuda(bool cuda) { return on_cuda(cuda); }

}  // namespace prefloss
