// The statistics of an evaluation for Python. Names, reading of arguments, where results go; no arithmetic.
#include "../evaluation.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../cpu/kernels.h"
#include "views.h"

namespace prefloss {
namespace {

// A tensor on the host, of one dimension, or none at all.
Column column_of(py::handle given, const char* name, int64_t count, bool is_index = false) {
  Column column;
  if (given.is_none()) return column;
  View view;
  const auto fits = [&] {
    return read(given, view) && !view.cuda && view.dimensions == 1 && view.count() == count &&
           (is_index ? view.dtype == Dtype::kInt64 : view.dtype <= Dtype::kFloat32) &&
           as_column(view, 0, column) == Fit::kYes && (!is_index || column.stride == 1 || count < 2);
  };
  if (!fits()) throw std::invalid_argument(std::string(name) + " is no column of the evaluated pairs");
  return column;
}

const int64_t* indices_of(py::handle given, const char* name, int64_t count) {
  return static_cast<const int64_t*>(column_of(given, name, count, true).data);
}

// `columns`: chosen, rejected, margin, weight, target, baseline_chosen, baseline_rejected, judge; `numbers`: beta,
// margin, target, label_smoothing.
EvaluatedPairs pairs_of(const py::tuple& columns, const py::tuple& numbers) {
  EvaluatedPairs given;
  View view;
  if (!read(columns[0], view)) throw std::invalid_argument("chosen is no column of the evaluated pairs");
  const int64_t count = given.pairs.count = view.count();
  Pairs& pairs = given.pairs;
  Column* const places[] = {
      &pairs.chosen,          &pairs.rejected,          &pairs.margin, &pairs.weight, &pairs.target,
      &given.baseline_chosen, &given.baseline_rejected, &given.judge};
  constexpr const char* kNames[] = {"chosen",          "rejected",          "margin", "weight", "target",
                                    "baseline_chosen", "baseline_rejected", "judge"};
  for (size_t k = 0; k < 8; k++) *places[k] = column_of(columns[k], kNames[k], count);
  pairs.options = {numbers[0].cast<double>(), numbers[1].cast<double>(), numbers[2].cast<double>(),
                   numbers[3].cast<double>(), 0};
  return given;
}

void pair_statistics(const py::tuple& columns, const py::tuple& numbers, py::handle result) {
  const EvaluatedPairs given = pairs_of(columns, numbers);
  void* const values = output(result, Dtype::kFloat64, given.statistics() * given.pairs.count);
  cpu::kernels().pair_statistics(given, static_cast<double*>(values));
}

int64_t entries_of(py::handle tensor) {
  View view;
  return read(tensor, view) ? view.count() : 0;
}

void add_statistics(const py::tuple& columns, const py::tuple& numbers, py::handle moments, py::handle shifts,
                    double scale, py::handle bin_of, py::handle rows, py::handle bin_rows, py::handle units,
                    py::handle bins) {
  const EvaluatedPairs given = pairs_of(columns, numbers);
  StatisticSums sums;
  constexpr int64_t kMomentNumbers = sizeof(Moment) / sizeof(int64_t);
  sums.columns = entries_of(moments) / kMomentNumbers;
  sums.moments = static_cast<const Moment*>(output(moments, Dtype::kInt64, sums.columns * kMomentNumbers));
  sums.shifts = static_cast<const double*>(output(shifts, Dtype::kFloat64, given.statistics()));
  sums.scale = scale;
  sums.bin_of = indices_of(bin_of, "bin_of", kSteps * kLastEdge + 1);
  sums.rows = indices_of(rows, "rows", given.pairs.count);
  sums.bin_rows = indices_of(bin_rows, "bin_rows", given.pairs.count);
  sums.units = static_cast<double*>(output(units, Dtype::kFloat64, entries_of(units)));
  sums.unit_rows = entries_of(units) / std::max<int64_t>(sums.columns, 1);
  sums.bins = static_cast<double*>(output(bins, Dtype::kFloat64, entries_of(bins)));
  const py::gil_scoped_release release;
  cpu::kernels().add_statistics(given, sums);
}

}  // namespace

void add_evaluation(py::module_& module) {
  module.def("pair_statistics", &pair_statistics, py::arg("columns"), py::arg("numbers"), py::arg("result"));
  module.def("add_statistics", &add_statistics, py::arg("columns"), py::arg("numbers"), py::arg("moments"),
             py::arg("shifts"), py::arg("scale"), py::arg("bin_of"), py::arg("rows"), py::arg("bin_rows"),
             py::arg("units"), py::arg("bins"));
}

}  // namespace prefloss
