// The table of an instruction set's kernels. Compiled once per instruction set.
#include "instruction_set.h"
#include "kernels.h"

namespace prefloss::cpu::PREFLOSS_CPU_PATH {

extern const Kernels kKernels = {PREFLOSS_CPU_NAME,   paired_forward,  paired_backward,  paired_double_backward,
                                 indexed_forward,     grouped_forward, grouped_backward, grouped_double_backward,
                                 grouped_derivatives, pair_statistics, add_statistics};

}  // namespace prefloss::cpu::PREFLOSS_CPU_PATH
