// The CUDA kernels, and what can be said of the GPU. Mirrors cpu/kernels.h.
#pragma once

#include <string>

#include "../groups.h"

namespace prefloss::cuda {

// On which stream of the current device, and the memory for sums: `..._scratch_size` float64.
struct Launch {
  void* stream = nullptr;
  double* scratch = nullptr;
};

// 0 where one block reaches all pairs of a row.
int64_t scratch_size(Dtype rewards, int64_t rows, int64_t count);
int64_t grouped_scratch_size(const Groups&, bool statistics);
// Whether groups of these sizes, with these options, take linear time: their items must then come in the order of their
// ranks. Nothing on the device is looked at. All others are done pair by pair.
bool are_long_lists(const Groups&, bool statistics);
// -1 where there are more comparisons than sums can be exact of. `slopes`: whether they are wanted.
int64_t indexed_scratch_size(const Comparisons&, const Pairs&, bool slopes);

// Pointers are the device's. Nothing synchronises and nothing is allocated. Each returns a cudaError_t, 0 for success.
int paired_forward(const Pairs&, const Divisor&, const ForwardOutputs&, const Launch&);
int paired_backward(const Pairs&, const Divisor&, const Column& upstream, const Gradients&, const Launch&);
int paired_double_backward(const Pairs&, const Divisor&, const Column& upstream, const Gradients& directions,
                           const Column& upstream_gradient, const Gradients&, const Launch&);
// An index out of range fails an assertion on the device. No statistics.
int indexed_forward(const Comparisons&, const Pairs&, const Divisor&, const ForwardOutputs&, void* slopes,
                    const Launch&);
int grouped_forward(const Groups&, const GroupAverage&, const GroupOutputs&, const Launch&);
// The keys by which one sort brings the items of each list together, in the order of their ranks: of lists with
// offsets, from the ranks of all items in ascending order, and which item has each.
int list_keys(const Groups&, const int64_t* sorted_ranks, const int64_t* order, int64_t* keys, const Launch&);
int grouped_backward(const Groups&, const void* slopes, const GroupUpstream&, const Column& result, const Launch&);
int grouped_double_backward(const Groups&, const void* slopes, const double* factors, const GroupUpstream&,
                            const Column& direction, const Column& gradient, double* along, const Launch&);

// Throws std::runtime_error with the CUDA error's name where `status` is one.
void check(int status, const char* what);

// Whether a launch says that an assertion has failed in a kernel: at once only where kernels run on the host.
bool assertion_failed(int status);

// The calling thread's device, or -1 where there is none.
int current_device();

// Why no GPU can be used here, or an empty string.
std::string unusable();

// The toolkit that the kernels were compiled with: 13000 is 13.0.
int toolkit();

}  // namespace prefloss::cuda
