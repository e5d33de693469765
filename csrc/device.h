// Where a call runs, and the kernels for it.
#pragma once

#include "groups.h"

namespace prefloss {

// What a call may use.
struct Place {
  bool cuda = false;
  int threads = 1;            // CPU
  void* stream = nullptr;     // CUDA
  double* scratch = nullptr;  // CUDA: memory for sums, ..._scratch_size() float64
};

// Throws where this build has no CUDA kernels.
int64_t scratch_size(bool cuda, const Pairs&);
int64_t grouped_scratch_size(bool cuda, const Groups&, bool statistics);
// Whether CUDA kernels want these groups' items in the order of their ranks; and the keys of a sort that finds it,
// where the groups are not all of one size (cuda/kernels.h).
bool wants_order(bool cuda, const Groups&, bool statistics);
void list_keys(const Groups&, const int64_t* sorted_ranks, const int64_t* order, int64_t* keys, const Place&);

// -1 where CUDA kernels do not take so many comparisons.
int64_t indexed_scratch_size(bool cuda, const Comparisons&, const Pairs&, bool slopes);

void paired_forward(const Pairs&, const Divisor&, const ForwardOutputs&, const Place&);
void paired_backward(const Pairs&, const Divisor&, const Column& upstream, const Gradients&, const Place&);
void paired_double_backward(const Pairs&, const Divisor&, const Column& upstream, const Gradients& directions,
                            const Column& upstream_gradient, const Gradients&, const Place&);
// `pairs` has the options of the comparisons. `slopes`, one an item, of the type that is computed in, may be missing.
// False where an index is out of range; on a GPU that fails an assertion there. The CUDA kernels have no statistics.
bool indexed_forward(const Comparisons&, const Pairs&, const Divisor&, const ForwardOutputs&, void* slopes,
                     const Place&);
// The CUDA kernels of groups take contiguous rewards and directions of the type that is computed in, and int64 ranks
// without NaN, and need `factors` and `sums`; those of the CPU take any column.
GroupStatus grouped_forward(const Groups&, const GroupAverage&, const GroupOutputs&, const Place&);
void grouped_backward(const Groups&, const void* slopes, const GroupUpstream&, const Column& result, const Place&);
GroupStatus grouped_double_backward(const Groups&, const void* slopes, const double* factors, const GroupUpstream&,
                                    const Column& direction, const Column& gradient, double* along, const Place&);
bool runs_on_cuda(bool cuda);

// The calling thread's GPU, or -1 where there is none or this build has no kernels for it.
int current_cuda_device();

}  // namespace prefloss
