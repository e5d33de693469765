// Tensors as the kernels see them, from Python (eager calls) or from torch's C ABI (operators). This is the one place
// that takes a pointer from a tensor.
//
// With so few pairs as a batch of preferences has, what costs is not the kernel but asking Python for an address, a
// dtype, a shape. DLPack's exchange API answers all of it in 20 ns a tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <vector>

#include "../device.h"
#include "../torch_abi.h"

namespace prefloss {

namespace py = pybind11;

// What becomes of the losses; python/prefloss/pairs.py names them too.
enum Reduction : int { kMean, kSum, kNone };

// The type that rewards are computed in, and the loss is of.
inline Dtype accumulation_dtype(Dtype rewards) {
  return rewards == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
}

struct View {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  bool cuda = false;
  int device_index = 0;
  int64_t dimensions = 0;
  const int64_t *sizes = nullptr, *strides = nullptr;  // borrowed from the tensor

  int64_t count(int64_t from = 0) const;  // of the entries of the dimensions from this one on
  bool is_floating() const { return dtype <= Dtype::kFloat16; }
  bool has_shape_of(const View& other) const;
  // Whether kernels take this dtype for an option beside such rewards, and for weights, which may be a mask.
  bool is_option(const View& rewards) const { return dtype == rewards.dtype || dtype == Dtype::kFloat32; }
  bool is_weight(const View& rewards) const { return is_option(rewards) || dtype == Dtype::kBool; }
};

// What to recognise a plain tensor by, and the path of libtorch_cpu, with which the operators are registered. Once in a
// process. Throws std::runtime_error, saying what this torch lacks.
bool set_torch(const py::type& tensor, const py::type& parameter, const py::object& exchange_api,
               const std::string& library);

// False for whatever is not certainly a plain strided tensor in the memory of the host or of the current CUDA device:
// no tensor, a subclass of it, one without memory, a view with the negative bit, a dtype that no kernel takes.
bool read(py::handle handle, View& view);

// The same of a tensor that was made for this call, and is no view.
bool read_result(py::handle handle, View& view);

// Whether it is a tensor, and no subclass but a parameter.
bool is_tensor(py::handle handle);

// How a call may take its tensors: not at all (the operators do, or say what they cannot), as they are, or once they
// are contiguous.
enum class Fit : int { kNo, kYes, kAfterCopy };

// The worst of several.
inline Fit both(Fit first, Fit second) {
  if (first == Fit::kNo || second == Fit::kNo) return Fit::kNo;
  return first == Fit::kYes ? second : first;
}

// The view's entries as a column, where one stride leads through them (and another one through the rows, the first
// `batch` dimensions).
Fit as_column(const View& view, int64_t batch, Column& column);

// Few entries on the host that no stride leads through, copied to where one does. Of many, torch makes copies, with its
// threads.
class Copies {
 public:
  // Columns that nobody reads need no entries.
  explicit Copies(bool are_read = true) : are_read_(are_read) {}

  // The entries as they lie, or copies.
  Fit gather(const View& view, Column& column);
  // Where a result goes: to its place, or to memory from which `scatter` brings it there.
  Fit make_room(const View& result, Column& column);
  void scatter();

 private:
  struct Copy {
    View view;
    std::vector<char> entries;
  };
  bool are_read_;
  std::vector<Copy> inputs_, results_;
};

// None, or a tensor beside the rewards, on their device. `accepts(view)`: its dtype and its shape.
template <typename Accepts>
Fit read_column(py::handle handle, const View& rewards, const Accepts& accepts, Column& column,
                Copies* copies = nullptr) {
  if (handle.is_none()) return Fit::kYes;
  View view;
  if (!read(handle, view) || view.cuda != rewards.cuda || !accepts(view)) return Fit::kNo;
  return copies ? copies->gather(view, column) : as_column(view, 0, column);
}

// Where a result goes that a call has made room for, contiguous; null for None. Throws for anything else.
void* output(py::handle handle, Dtype dtype, int64_t count);

// The entry of a tensor of one entry on the host.
double number_of(const View& view);

// An operator's tensors, which are kept alive, as columns of `rows` sets, the first `batch` dimensions. What no stride
// leads through is copied.
class Columns {
 public:
  int64_t batch = 0;
  const torch_abi::Tensor* rewards = nullptr;  // on whose device all tensors are; null: on the host

  const torch_abi::Tensor& keep(torch_abi::Tensor&& tensor);
  // Throws where the tensor has not so many entries, no memory, or is on another device: what was saved for backward
  // may have been changed since.
  void check(const torch_abi::Tensor& tensor, const char* name, int64_t entries) const;
  // An empty one where there is no tensor. Throws as `check` does, and where the dtype is another one.
  Column of(torch_abi::Tensor&& tensor, const char* name, int64_t entries, std::initializer_list<Dtype> dtypes);
  // Of a tensor that lives as long as this, and has passed `check` or is new.
  Column of(const torch_abi::Tensor& kept);
  Column of(torch_abi::Tensor&& tensor) = delete;

 private:
  std::deque<torch_abi::Tensor> alive_;
};

// Where a kernel runs over so many entries: the current stream of the device, or torch's threads.
Place place_of(bool cuda, int device_index, int64_t entries);

// Memory for so many partial sums, where a GPU needs it; `place` learns where it is.
torch_abi::Tensor scratch_for(Place& place, int device_index, int64_t sums);

// The product of sizes.
int64_t product(const std::vector<int64_t>& sizes);

// Releasing the GIL costs more than a kernel over so few pairs.
template <typename Kernel>
void run_without_gil(int64_t pairs, const Kernel& kernel) {
  constexpr int64_t kRelease = 4096;
  if (pairs < kRelease) return kernel();
  const py::gil_scoped_release released;
  kernel();
}

// The functions of a layout, for eager calls.
void add_paired(py::module_& module);
void add_grouped(py::module_& module);
void add_indexed(py::module_& module);
void add_evaluation(py::module_& module);
void add_sums(py::module_& module);

// The operators of a layout.
void register_paired();
void register_grouped();

}  // namespace prefloss
