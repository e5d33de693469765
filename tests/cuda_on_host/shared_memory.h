// The kernels' __shared__ variables as one piece of memory.
#pragma once

#include <link.h>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace [[gnu::visibility("hidden")]] cuda_on_host {

// It makes sure that this module has thread-local storage; taking its address makes the C library allocate that of a
// thread.
inline thread_local char in_this_module;

// Thread-local storage of this module, as the launching thread has it. Variables of other code in the module lie in
// between (pybind11 has some), so all of it is put back when the launch is over.
class SharedMemory {
 public:
  SharedMemory() {
    anchor_ = &in_this_module;
    dl_iterate_phdr(find, this);
    saved_.assign(begin_, begin_ + bytes_);
  }
  ~SharedMemory() { std::copy(saved_.begin(), saved_.end(), begin_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // NaN in every floating-point type, and an index out of every range.
  void poison() { std::fill_n(begin_, bytes_, static_cast<char>(0xff)); }

 private:
  static int find(dl_phdr_info* module, size_t, void* shared_memory) {
    auto* self = static_cast<SharedMemory*>(shared_memory);
    auto* const begin = static_cast<char*>(module->dlpi_tls_data);
    for (int i = 0; begin && i < module->dlpi_phnum; i++) {
      const auto& segment = module->dlpi_phdr[i];
      if (segment.p_type != PT_TLS || self->anchor_ < begin || self->anchor_ >= begin + segment.p_memsz) continue;
      self->begin_ = begin;
      self->bytes_ = segment.p_memsz;
      return 1;
    }
    return 0;
  }

  char* anchor_ = nullptr;
  char* begin_ = nullptr;
  size_t bytes_ = 0;
  std::vector<char> saved_;
};

}  // namespace cuda_on_host
