#include "call.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace prefloss {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double greatest(Dtype rewards) {
  return accumulation_dtype(rewards) == Dtype::kFloat64 ? std::numeric_limits<double>::max()
                                                        : static_cast<double>(std::numeric_limits<float>::max());
}

bool read_reduction(py::handle given, int& reduction) {
  if (given.is_none()) return true;
  if (!PyUnicode_CheckExact(given.ptr())) return false;
  constexpr std::pair<const char*, int> kNames[] = {{"mean", kMean}, {"sum", kSum}, {"none", kNone}};
  for (const auto& [name, code] : kNames) {
    if (PyUnicode_CompareWithASCIIString(given.ptr(), name) == 0) return reduction = code, true;
  }
  return false;
}

bool read_flag(py::handle given, bool& flag) {
  flag = given.ptr() == Py_True;
  return flag || given.ptr() == Py_False;
}

bool read_denominator(py::handle given, const View& rewards, Call& call) {
  if (given.is_none()) return true;
  if (call.reduction != kMean) return false;
  double number = 0;
  View view;
  if (!is_tensor(given)) {
    const double limit = greatest(rewards.dtype);
    if (!read_number(given, rewards.dtype, 1 / limit, limit, number)) return false;
  } else if (!read(given, view) || view.count() != 1 || view.dtype == Dtype::kBool || requires_grad(given)) {
    return false;
  } else if (runs_on_cuda(view.cuda)) {
    if (view.cuda != rewards.cuda) return false;
    call.tensor_denominator = py::reinterpret_borrow<py::object>(given);
    return true;
  } else {
    number = number_of(view);
    if (!(number > 0)) return false;
  }
  call.denominator = number;
  return true;
}

}  // namespace

bool Call::read(const py::tuple& given, const View& rewards, bool checked) {
  const py::handle beta = given[0], smoothing = given[1], flip_rate = given[2], centering = given[3];
  double no_flips = 0;
  const double low = checked ? -kInfinity : 0;
  return read_number(beta, rewards.dtype, -kInfinity, kInfinity, options.beta) &&
         read_number(smoothing, rewards.dtype, low, 0.5, options.label_smoothing) &&
         read_number(flip_rate, rewards.dtype, 0, 0, no_flips) &&
         read_number(centering, rewards.dtype, 0, kInfinity, options.center_rewards_coefficient) &&
         read_reduction(given[4], reduction) && read_denominator(given[5], rewards, *this) &&
         read_flag(given[6], statistics);
}

py::object Call::any_denominator() const {
  if (tensor_denominator) return tensor_denominator;
  return denominator ? py::object(py::float_(*denominator)) : py::none();
}

py::object Call::numbers() const {
  return py::make_tuple(options.beta, options.margin, options.target, options.label_smoothing,
                        options.center_rewards_coefficient);
}

bool Call::read_tensor(py::handle given, const View& rewards, const double*& by) const {
  const auto is_number = [](const View& view) { return view.dtype == Dtype::kFloat64 && view.count() == 1; };
  Column column;
  if (read_column(given, rewards, is_number, column) == Fit::kNo) return false;
  by = static_cast<const double*>(column.data);
  return has_tensor_denominator() == (by != nullptr);
}

bool PairedCall::read(const py::tuple& given, py::handle margin, py::handle weight, py::handle target,
                      const View& rewards, bool checked) {
  return Call::read(given, rewards, checked) &&
         (is_tensor(margin) || read_number(margin, rewards.dtype, -kInfinity, kInfinity, options.margin)) &&
         (is_tensor(target) || read_number(target, rewards.dtype, 0, 1, options.target)) && !requires_grad(weight) &&
         !requires_grad(target);
}

bool read_number(py::handle given, Dtype rewards, double low, double high, double& number) {
  if (given.is_none()) return true;
  double value = 0;
  if (PyFloat_CheckExact(given.ptr())) {
    value = PyFloat_AS_DOUBLE(given.ptr());
  } else if (PyLong_CheckExact(given.ptr())) {
    value = PyLong_AsDouble(given.ptr());
    if (value == -1 && PyErr_Occurred() != nullptr) return PyErr_Clear(), false;
  } else {
    return false;
  }
  const double limit = greatest(rewards);
  if (!(value >= std::max(low, -limit) && value <= std::min(high, limit))) return false;
  number = value;
  return true;
}

bool read_choice(py::handle given, const char* no, const char* yes, bool& choice) {
  if (!PyUnicode_CheckExact(given.ptr())) return false;
  choice = PyUnicode_CompareWithASCIIString(given.ptr(), yes) == 0;
  return choice || PyUnicode_CompareWithASCIIString(given.ptr(), no) == 0;
}

bool requires_grad(py::handle given) {
  if (!is_tensor(given)) return false;
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  PyObject* const answer = PyObject_GetAttr(given.ptr(), name);
  if (answer == nullptr) throw py::error_already_set();
  Py_DECREF(answer);
  return answer == Py_True;
}

}  // namespace prefloss
