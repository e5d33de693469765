// The sums of two sets of pairs for Python, where they lie on the host. Reading of arguments, where results go.
#include "../sums.h"

#include <algorithm>

#include "views.h"

namespace prefloss {
namespace {

double* sums_of(py::handle given) {
  View view;
  const bool fits = read(given, view) && !view.cuda && view.dtype == Dtype::kFloat64 && view.dimensions == 1 &&
                    view.count() == kSums && view.strides[0] == 1;
  return fits ? static_cast<double*>(view.data) : nullptr;
}

// False, with nothing written, where one of them is not certainly plain memory of the host.
bool merge_sums(py::handle mine, py::handle theirs, py::handle result) {
  const double *const one = sums_of(mine), *const other = sums_of(theirs);
  double* const both = sums_of(result);
  if (one == nullptr || other == nullptr || both == nullptr) return false;
  Partial total = Partial::zero();
  for (const double* sums : {one, other}) {
    if (sums[kCount] != 0) total.add_statistics(sums);
  }
  std::copy_n(total.sums, static_cast<int>(kGathered), both);
  both[kWeight] = one[kWeight] + other[kWeight];
  for (int kind = kGathered; kind < kSums; kind++) both[kind] = one[kind] + other[kind];
  const auto linked = [&](const double* sums) {
    const double ratio = scale_ratio(sums[kWeightScale], both[kWeightScale]);
    return ratio * ratio * sums[kLinkedSquares];
  };
  both[kLinkedSquares] = linked(one) + linked(other);
  return true;
}

}  // namespace

void add_sums(py::module_& module) {
  module.def("merge_sums", &merge_sums, py::arg("mine"), py::arg("theirs"), py::arg("result"));
}

}  // namespace prefloss
