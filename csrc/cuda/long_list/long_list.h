// All pairs of long ranked lists in time linear in their items, on the GPU. Mirrors cpu/long_list/; long_list.cu says
// how it is done, and what it costs.
#pragma once

#include <cuda_runtime.h>

#include "../kernels.h"

namespace prefloss::cuda {

// What becomes known of a list on the device.
struct ListPlan {
  int cells;         // of scores, in which there are items
  int block;         // so many items in a row have one row of sums; 0: the list is done pair by pair
  int factors;       // so many 1 + exp(w), of pairs that are visited, have one logarithm
  bool by_products;  // whether their exp(w) is a ratio of a number of each item
  double middle;     // then: the key of the cell from which scores are counted
  double margin;     // and exp of the margin
};

int64_t long_lists_scratch_size(const Groups&);

// A plan a group, in the memory for long lists.
const ListPlan* plans_of(const double* scratch);

// Finds the cells of each list, and plans it. A list with too many cells, or with a reward that is not finite, is left
// to others: its plan has no block.
cudaError_t plan_long_lists(const Groups&, double* scratch, const Launch&);

// For each item of the other lists the slope, the number of pairs in which it is the better one, and the sum of their
// losses.
cudaError_t visit_long_lists(const Groups&, double* scratch, double* slopes, double* pairs, double* losses,
                             const Launch&);

}  // namespace prefloss::cuda
