// What a call says beside its tensors, read from what the user gave it.
#pragma once

#include <optional>
#include <vector>

#include "direct.h"
#include "views.h"

namespace prefloss {

// How the rewards hold the pairs: two tensors, or one. python/prefloss/pairs.py names them too.
enum Layout : int { kPaired, kHalves, kInterleaved };

// What every layout has. `read` and its like are false for whatever is not certainly right: Python's checks convert it,
// or say what is wrong with it (python/prefloss/arguments.py).
struct Call {
  Options options;
  int reduction = kMean;
  std::optional<double> denominator;
  py::object tensor_denominator;  // in the place of a number: a GPU reads it, and the host must not wait for that
  bool statistics = false;
  bool copied = false;  // not every tensor has one stride: contiguous copies are to be read

  // `given`: (beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction, denominator, return_stats).
  // `checked`: Python has checked the values, and put a flip rate into the label smoothing.
  bool read(const py::tuple& given, const View& rewards, bool checked);
  // The tensor as kernels read it: float64, beside the rewards. False where it is not there, or is none where one is
  // needed.
  bool read_tensor(py::handle given, const View& rewards, const double*& by) const;

  bool has_denominator() const { return denominator || tensor_denominator; }
  bool has_tensor_denominator() const { return static_cast<bool>(tensor_denominator); }

  // For Python.
  py::object any_denominator() const;
  py::object numbers() const;
};

struct PairedCall : Call {
  int layout = kPaired;
  bool is_plain = false;  // two tensors as they lie, no other, and one result: the loss, or terms that look like them

  // Whether weights, if there are any, are what the sum is divided by.
  bool divides_by_weight() const { return reduction == kMean && !has_denominator(); }

  // Margin and target are numbers or tensors; what the tensors hold is read elsewhere.
  bool read(const py::tuple& given, py::handle margin, py::handle weight, py::handle target, const View& rewards,
            bool checked);

  // `weights`: the total weight of each row, of kSums entries; forward, which computes them, has none. `by`: what
  // read_tensor has read.
  Divisor divisor(const Pairs& pairs, const double* weights, const double* by = nullptr) const {
    if (reduction != kMean) return {};
    if (denominator) return {*denominator};
    if (by) return {1, by};
    if (pairs.weight) return {1, weights, kSums, true};
    return {pairs.count > 0 ? static_cast<double>(pairs.count) : 1.0};
  }
};

// None leaves `number` as it is. The type in which the loss of such rewards is computed must hold the number.
bool read_number(py::handle given, Dtype rewards, double low, double high, double& number);

// The place of a string among two choices.
bool read_choice(py::handle given, const char* no, const char* yes, bool& choice);

// Whether a tensor asks for a gradient, which only rewards and margins may. False for None and numbers.
bool requires_grad(py::handle given);

// Of what is a number or has one entry a pair: the tensor, or None.
inline py::handle tensor_or_none(py::handle given) { return is_tensor(given) ? given : py::handle(Py_None); }

// What Python sees of a call: what every layout's has, and its own.
template <typename Class>
void add_call(py::module_& module, const char* name, const std::vector<PyGetSetDef>& its_own) {
  using direct::attribute;
  std::vector<PyGetSetDef> all{attribute<Class, &Class::reduction>("reduction"),
                               attribute<Class, &Class::any_denominator>("denominator"),
                               attribute<Class, &Class::has_tensor_denominator>("has_tensor_denominator"),
                               attribute<Class, &Class::statistics>("statistics"),
                               attribute<Class, &Class::copied>("copied"),
                               attribute<Class, &Class::numbers>("numbers")};
  all.insert(all.end(), its_own.begin(), its_own.end());
  direct::add_type<Class>(module, name, all);
}

}  // namespace prefloss
