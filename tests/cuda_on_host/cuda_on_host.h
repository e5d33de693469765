// Runs CUDA C++ kernels on a CPU, unchanged, for tests on machines without a GPU.
//
// g++ compiles the kernels' .cu file with this header included first, against the toolkit's own headers:
//
//   g++ -std=c++17 -fPIC -fvisibility=hidden -x c++ -include cuda_on_host.h -isystem $CUDA_HOME/include -c kernels.cu
//   g++ -std=c++17 -fPIC -fvisibility=hidden -isystem $CUDA_HOME/include -c cuda_on_host.cpp stack.cpp runtime.cpp
//
// and all objects go into one module, in the place of libcudart. "Device" pointers are then those of ordinary arrays.
// A launch returns when its grid is done: cuda_on_host.cpp runs one block at a time, every CUDA thread a fiber on the
// launching OS thread. Any OS thread may launch; launches wait for each other.
//
// Covered: what the kernels of this project use. A launch is cudaLaunchKernel(kernel, ...) with a typed function
// pointer; shared memory is static, and is full of NaN when a block begins; an assertion that fails is cudaErrorAssert
// from the launch. Not covered: <<<>>>, dynamic shared memory, votes, cudaMalloc and cudaMemcpy. __CUDACC__ and
// __CUDA_ARCH__ are not defined.
//
// Found, with a diagnosis on stderr and cudaErrorLaunchFailure from the launch (later launches work): wrong masks,
// shuffles that read a lane which takes no part, divergent barriers, threads that return before a barrier, deadlocks,
// and misaligned __ldg and __stwb. Not found: races between blocks.
//
// CUDA_ON_HOST_SEED=n sets the order in which blocks and threads run (0: ascending, 1: descending, other: random order
// n), which shows races inside a block: run 0, 1 and several others. -fsanitize=address or -fsanitize=thread on the .cu
// file and for the linker, never on the files beside this one, finds accesses out of bounds, or these races in any
// order, with their lines. In shared memory only -fsanitize=undefined finds accesses out of bounds. Python then starts
// with LD_PRELOAD=$(g++ -print-file-name=libtsan.so), or libasan.so and ASAN_OPTIONS=detect_leaks=0.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
// A block runs on one OS thread, so what that thread owns is shared by the block.
#define __shared__ thread_local
#define __launch_bounds__(...)

// threadIdx, blockIdx, blockDim, gridDim and warpSize; hidden, so that reading one takes no detour through a table.
#pragma GCC visibility push(hidden)
#include <device_launch_parameters.h>
#pragma GCC visibility pop

namespace [[gnu::visibility("hidden")]] cuda_on_host {

// Where the kernel calls a function that can fail. As a default argument, here() is the caller's line.
struct SourceLine {
  const char* file;
  int line;

  static constexpr SourceLine here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

constexpr int kWarpSize = 32;

enum class WarpCall { kShuffle, kSync };

// Waits for the other lanes of the mask. A shuffle returns the value of the source lane.
uint64_t join_warp(WarpCall call, unsigned mask, uint64_t value, int source_lane, SourceLine where);

// Waits for the other threads of the block.
void join_block(SourceLine where);

// The running thread's place in its warp.
int lane();

// Ends the launch: cudaErrorLaunchFailure.
[[noreturn]] void fail_misaligned(const volatile void* address, size_t bytes, SourceLine where);

using AnyKernel = void (*)();
using CallKernel = void (*)(AnyKernel kernel, void** arguments);

cudaError_t launch(CallKernel call, AnyKernel kernel, void** arguments, dim3 grid, dim3 block, size_t shared_bytes,
                   SourceLine where);

// That of the last launch of this OS thread that failed, which is forgotten then.
cudaError_t take_last_error();

// Atomic, as threads other than the launching one may ask; only one launch at a time adds to them.
extern std::atomic<uint64_t> bytes_loaded, bytes_stored;

inline void add(std::atomic<uint64_t>& counter, size_t bytes) {
  counter.store(counter.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
}

// Vector accesses must be aligned to their size on a GPU, and only there.
template <typename T>
void check_access(const T* address, SourceLine where) {
  static_assert(std::is_trivially_copyable_v<T>);
  static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0, "not an access of a GPU");
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) fail_misaligned(address, sizeof(T), where);
}

template <typename T>
T shuffle(unsigned mask, T value, int source_lane, SourceLine where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = join_warp(WarpCall::kShuffle, mask, bits, source_lane, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename... Parameters, size_t... kIndices>
void call_with(void (*kernel)(Parameters...), void** arguments, std::index_sequence<kIndices...>) {
  kernel(*static_cast<Parameters*>(arguments[kIndices])...);
}

template <typename... Parameters>
void call_kernel(AnyKernel kernel, void** arguments) {
  call_with(reinterpret_cast<void (*)(Parameters...)>(kernel), arguments, std::index_sequence_for<Parameters...>());
}

}  // namespace cuda_on_host

// Preferred to the toolkit's template, whose parameter is any pointer.
template <typename... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes = 0, cudaStream_t = nullptr,
                             cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  return cuda_on_host::launch(cuda_on_host::call_kernel<Parameters...>,
                              reinterpret_cast<cuda_on_host::AnyKernel>(kernel), arguments, grid, block, shared_bytes,
                              where);
}

inline void __syncthreads(cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  cuda_on_host::join_block(where);
}

inline void __syncwarp(unsigned mask = 0xffffffff, cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  cuda_on_host::join_warp(cuda_on_host::WarpCall::kSync, mask, 0, 0, where);
}

// Shuffles inside groups of `width` lanes, a power of two. A source beyond the group is the lane itself.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  const int group = cuda_on_host::lane() & ~(width - 1);
  return cuda_on_host::shuffle(mask, value, group + (source & (width - 1)), where);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  const int lane = cuda_on_host::lane(), source = lane + static_cast<int>(distance);
  return cuda_on_host::shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane, where);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = 32,
                  cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  const int lane = cuda_on_host::lane(), source = lane ^ flipped;
  return cuda_on_host::shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane, where);
}

template <typename T>
T __ldg(const T* address, cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  cuda_on_host::check_access(address, where);
  cuda_on_host::add(cuda_on_host::bytes_loaded, sizeof(T));
  return *address;
}

// The value's type is that of the address, as for the toolkit's overloads.
template <typename T>
void __stwb(T* address, std::common_type_t<T> value,
            cuda_on_host::SourceLine where = cuda_on_host::SourceLine::here()) {
  cuda_on_host::check_access(address, where);
  cuda_on_host::add(cuda_on_host::bytes_stored, sizeof(T));
  *address = value;
}

// Atomic for the thread sanitizer too; the fibers of a block run on one thread.
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline unsigned long long atomicOr(unsigned long long* address, unsigned long long value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}

inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected,
                                    unsigned long long value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// What a failed assert() of the C library calls: it ends the launch, not the process.
#define __assert_fail cuda_on_host_assert_fail
extern "C" [[noreturn]] [[gnu::visibility("hidden")]] void cuda_on_host_assert_fail(const char* assertion,
                                                                                    const char* file, unsigned line,
                                                                                    const char* function) noexcept;

// For the tests (ctypes): the bytes that passed through __ldg and __stwb since the last reset.
extern "C" {
[[gnu::visibility("default")]] uint64_t cuda_on_host_bytes_loaded();
[[gnu::visibility("default")]] uint64_t cuda_on_host_bytes_stored();
[[gnu::visibility("default")]] void cuda_on_host_reset_counts();
}
