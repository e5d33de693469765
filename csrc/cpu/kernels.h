// The CPU kernels: one table of functions per instruction set, and the choice among them.
#pragma once

#include "../evaluation.h"
#include "../groups.h"

namespace prefloss::cpu {

// `threads`: one, or torch's; the results are the same bits for any number.
//
// indexed_forward: `pairs` has the options of the comparisons, and neither chosen nor rejected. `slopes`, one an item,
// of the type that is computed in, where they are wanted: the derivatives of the loss. False where an index is out of
// range. grouped_double_backward: `gradient`, the derivative by the rewards of the sum of the gradients times
// `direction`; `along`, one a group, that of the upstream gradient's entry, or its group's part of it.
// grouped_derivatives: of the loss by each reward, the first and the second, an item each, contiguous. pair_statistics:
// `result` is (statistics, pairs). It and add_statistics run on the calling thread.
struct Kernels {
  const char* name;
  void (*paired_forward)(const Pairs&, const Divisor&, const ForwardOutputs&, int threads);
  void (*paired_backward)(const Pairs&, const Divisor&, const Column& upstream, const Gradients&, int threads);
  void (*paired_double_backward)(const Pairs&, const Divisor&, const Column& upstream, const Gradients& directions,
                                 const Column& upstream_gradient, const Gradients&, int threads);
  bool (*indexed_forward)(const Comparisons&, const Pairs&, const Divisor&, const ForwardOutputs&, void* slopes,
                          int threads);
  GroupStatus (*grouped_forward)(const Groups&, const GroupAverage&, const GroupOutputs&, int threads);
  void (*grouped_backward)(const Groups&, const void* slopes, const GroupUpstream&, const Column& result, int threads);
  GroupStatus (*grouped_double_backward)(const Groups&, const void* slopes, const double* factors, const GroupUpstream&,
                                         const Column& direction, const Column& gradient, double* along, int threads);
  GroupStatus (*grouped_derivatives)(const Groups&, const GroupAverage&, double* gradient, double* curvatures,
                                     int threads);
  void (*pair_statistics)(const EvaluatedPairs&, double* result);
  void (*add_statistics)(const EvaluatedPairs&, const StatisticSums&);
};

namespace baseline {
extern const Kernels kKernels;
}
#ifdef PREFLOSS_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

// Whether PREFLOSS_CPU asks for composed operations in the place of kernels (python/prefloss/composed.py).
bool is_composed();

// The kernels in use: the best that this processor runs, or those that the environment variable PREFLOSS_CPU names.
// Throws std::runtime_error, naming what is accepted, where that is unknown here.
const Kernels& kernels();

}  // namespace prefloss::cpu
