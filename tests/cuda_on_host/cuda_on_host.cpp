// The scheduler of cuda_on_host.h. Compiled without sanitizers: it tells them what it does.
#include "cuda_on_host.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "shared_memory.h"
#include "stack.h"

namespace cuda_on_host {

// Constants for the kernels, where they have these names; only the scheduler changes them, between two fibers.
uint3 thread_index asm("threadIdx");
uint3 block_index asm("blockIdx");
dim3 block_shape asm("blockDim");
dim3 grid_shape asm("gridDim");

std::atomic<uint64_t> bytes_loaded, bytes_stored;

namespace {

constexpr int kMaxThreads = 1024;

// Per OS thread, as in CUDA.
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

std::string format(SourceLine where) { return std::string(where.file) + ":" + std::to_string(where.line); }

std::string format(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string format_mask(unsigned mask) {
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", mask);
  return digits;
}

enum class Order { kAscending, kDescending, kRandom };

// The threads that can go on. A thread is in it at most once.
class ReadyThreads {
 public:
  void clear() { size_ = 0; }
  bool empty() const { return size_ == 0; }
  void add(int thread) { at(size_++) = thread; }

  int take(Order order, std::minstd_rand& random) {
    if (order == Order::kDescending) return at(--size_);
    if (order == Order::kRandom) std::swap(at(0), at(static_cast<unsigned>(random()) % size_));
    size_--;
    return ring_[first_++ % kMaxThreads];
  }

 private:
  int& at(unsigned place) { return ring_[(first_ + place) % kMaxThreads]; }

  int ring_[kMaxThreads];
  unsigned first_ = 0, size_ = 0;
};

enum class State { kReady, kInWarpCall, kInBarrier, kReturned };

struct Fiber {
  Stack stack;
  uint3 index = {};
  State state = State::kReady;
  SourceLine where = {};  // the call in which it waits, and that call's arguments
  WarpCall call = WarpCall::kSync;
  unsigned mask = 0;
  int source_lane = 0;
  uint64_t value = 0, result = 0;
  unsigned barriers = 0;
};

// Two clocks in turns: a thread may reach the next barrier before another has left this one.
struct SyncWarpClocks {
  Clock clocks[2];
  unsigned count = 0;
};

struct Warp {
  unsigned alive = 0;  // lanes that have not returned
  int waiting = 0;     // lanes in a warp call
  std::map<unsigned, SyncWarpClocks> clocks_of_mask;
};

bool same_line(SourceLine a, SourceLine b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

class Scheduler {
 public:
  cudaError_t launch(CallKernel call, AnyKernel kernel, void** arguments, dim3 grid, dim3 block, SourceLine where);

  // What a running fiber asks for.
  int lane() const { return running_ % kWarpSize; }
  uint64_t join_warp(WarpCall call, unsigned mask, uint64_t value, int source_lane, SourceLine where);
  void join_block(SourceLine where);
  [[noreturn]] void fail(SourceLine where, const std::string& what, cudaError_t error = cudaErrorLaunchFailure) {
    error_ = error;
    fail(running_, where, what);
  }

 private:
  static void fiber_main();
  void prepare(int thread);
  void resume(int thread);
  void suspend();
  void finish_thread();
  void run_block();
  void release_warp_if_complete(int warp, const Fiber& caller);
  void release_block_if_complete();
  void make_ready(int thread);
  void report_deadlock();
  void discard_fibers();
  [[noreturn]] void fail(int thread, SourceLine where, const std::string& what);

  Fiber fibers_[kMaxThreads];
  Warp warps_[kMaxThreads / kWarpSize];
  ReadyThreads ready_;
  int threads_ = 0, returned_ = 0, in_barrier_ = 0, running_ = 0;
  std::string diagnosis_;  // not empty: the launch has failed
  cudaError_t error_ = cudaErrorLaunchFailure;

  CallKernel call_ = nullptr;
  AnyKernel kernel_ = nullptr;
  void** arguments_ = nullptr;

  Order order_ = Order::kAscending;
  std::minstd_rand random_;

  Launcher launcher_;
  Clock block_begins_, block_ends_, barrier_clocks_[2];
};

Scheduler scheduler;
std::mutex launching;

void Scheduler::prepare(int thread) {
  Fiber& fiber = fibers_[thread];
  fiber.stack.prepare(fiber_main);
  fiber.barriers = 0;
  const auto linear = static_cast<unsigned>(thread);
  const dim3& shape = block_shape;
  fiber.index = {linear % shape.x, linear / shape.x % shape.y, linear / shape.x / shape.y};
}

// From the launching thread to a fiber, until that suspends itself.
void Scheduler::resume(int thread) {
  running_ = thread;
  thread_index = fibers_[thread].index;
  fibers_[thread].stack.resume(launcher_);
}

// From the running fiber to the launching thread. A fiber that has returned is not resumed.
void Scheduler::suspend() {
  Fiber& fiber = fibers_[running_];
  fiber.stack.suspend(launcher_, fiber.state == State::kReturned);
}

void Scheduler::fiber_main() {
  Scheduler& self = scheduler;
  self.fibers_[self.running_].stack.arrive(self.launcher_);
  self.block_begins_.acquire();
  self.call_(self.kernel_, self.arguments_);
  self.block_ends_.release();
  self.finish_thread();
  self.suspend();
}

void Scheduler::finish_thread() {
  const int warp = running_ / kWarpSize;
  fibers_[running_].state = State::kReturned;
  returned_++;
  warps_[warp].alive &= ~(1u << lane());
  // It may have been the one that others waited for.
  const int end = std::min(threads_, (warp + 1) * kWarpSize);
  for (int i = warp * kWarpSize; i < end; i++)
    if (fibers_[i].state == State::kInWarpCall) release_warp_if_complete(warp, fibers_[i]);
  release_block_if_complete();
}

void Scheduler::fail(int thread, SourceLine where, const std::string& what) {
  diagnosis_ =
      format(where) + ": block " + format(block_index) + " thread " + format(fibers_[thread].index) + ": " + what;
  suspend();
  std::abort();  // the fibers of a failed launch are not resumed
}

void Scheduler::make_ready(int thread) {
  fibers_[thread].state = State::kReady;
  ready_.add(thread);
}

uint64_t Scheduler::join_warp(WarpCall call, unsigned mask, uint64_t value, int source_lane, SourceLine where) {
  if (!(mask >> lane() & 1)) fail(where, "the lane is not in its own mask " + format_mask(mask));
  const int thread = running_;
  Fiber& fiber = fibers_[thread];
  Warp& warp = warps_[thread / kWarpSize];
  // Shuffles do not order memory accesses, __syncwarp does.
  Clock* clock = nullptr;
  if (call == WarpCall::kSync && has_thread_sanitizer()) {
    SyncWarpClocks& clocks = warp.clocks_of_mask[mask];
    clock = &clocks.clocks[clocks.count % 2];
    clock->release();
  }
  fiber.state = State::kInWarpCall;
  fiber.where = where;
  fiber.call = call;
  fiber.mask = mask;
  fiber.value = value;
  fiber.source_lane = source_lane;
  warp.waiting++;
  release_warp_if_complete(thread / kWarpSize, fiber);
  suspend();
  if (clock) clock->acquire();
  return fiber.result;
}

// Ends the call in which `caller` waits if every lane of its mask waits in that same call.
void Scheduler::release_warp_if_complete(int warp_number, const Fiber& caller) {
  Warp& warp = warps_[warp_number];
  Fiber* const lanes = &fibers_[warp_number * kWarpSize];
  const unsigned mask = caller.mask, taking_part = mask & warp.alive;
  const WarpCall call = caller.call;
  const SourceLine where = caller.where;
  if (warp.waiting < __builtin_popcount(taking_part)) return;
  const auto for_lanes = [&](const auto& body) {
    for (unsigned rest = taking_part; rest != 0; rest &= rest - 1) body(__builtin_ctz(rest));
  };
  bool complete = true;
  for_lanes([&](int i) {
    complete = complete && lanes[i].state == State::kInWarpCall && lanes[i].mask == mask && lanes[i].call == call &&
               same_line(lanes[i].where, where);
  });
  if (!complete) return;
  if (call == WarpCall::kSync && has_thread_sanitizer()) warp.clocks_of_mask[mask].count++;
  if (call == WarpCall::kShuffle) {
    for_lanes([&](int i) {
      const int source = lanes[i].source_lane;
      if (!(taking_part >> source & 1))
        fail(warp_number * kWarpSize + i, where,
             "the shuffle reads lane " + std::to_string(source) + ", which takes no part (mask " + format_mask(mask) +
                 ", lanes that have not returned " + format_mask(warp.alive) + ")");
      lanes[i].result = lanes[source].value;
    });
  }
  for_lanes([&](int i) { make_ready(warp_number * kWarpSize + i); });
  warp.waiting -= __builtin_popcount(taking_part);
}

void Scheduler::join_block(SourceLine where) {
  Fiber& fiber = fibers_[running_];
  Clock& clock = barrier_clocks_[fiber.barriers++ % 2];
  clock.release();
  fiber.state = State::kInBarrier;
  fiber.where = where;
  in_barrier_++;
  release_block_if_complete();
  suspend();
  clock.acquire();
}

void Scheduler::release_block_if_complete() {
  if (in_barrier_ == 0 || in_barrier_ + returned_ < threads_) return;
  const Fiber* const end = fibers_ + threads_;
  const Fiber* const first =
      std::find_if(fibers_, fibers_ + threads_, [](const Fiber& fiber) { return fiber.state == State::kInBarrier; });
  const auto thread = static_cast<int>(first - fibers_);
  if (returned_ > 0)
    fail(thread, first->where,
         "__syncthreads reached by " + std::to_string(in_barrier_) + " of " + std::to_string(threads_) +
             " threads; the others have returned");
  const Fiber* const other =
      std::find_if(first, end, [&](const Fiber& fiber) { return !same_line(fiber.where, first->where); });
  if (other != end)
    fail(thread, first->where,
         "divergent __syncthreads: thread " + format(other->index) + " waits at " + format(other->where));
  for (int i = 0; i < threads_; i++) make_ready(i);
  in_barrier_ = 0;
}

// Names one thread for every call in which threads wait.
void Scheduler::report_deadlock() {
  std::vector<const Fiber*> reported;
  for (int i = 0; i < threads_; i++) {
    const Fiber& fiber = fibers_[i];
    const bool in_barrier = fiber.state == State::kInBarrier;
    const auto like_this = [&](const Fiber* other) {
      return other->state == fiber.state && same_line(other->where, fiber.where) &&
             (in_barrier || other->mask == fiber.mask);
    };
    if (fiber.state == State::kReturned || std::any_of(reported.begin(), reported.end(), like_this)) continue;
    diagnosis_ += reported.empty() ? "" : "\n  ";
    diagnosis_ += format(fiber.where) + ": block " + format(block_index) + " thread " + format(fiber.index) +
                  ": deadlock: waits in " +
                  (in_barrier ? "__syncthreads" : "a warp call with mask " + format_mask(fiber.mask));
    reported.push_back(&fiber);
  }
}

void Scheduler::run_block() {
  returned_ = in_barrier_ = 0;
  ready_.clear();
  for (int first = 0; first < threads_; first += kWarpSize) {
    Warp& warp = warps_[first / kWarpSize];
    const int lanes = std::min(kWarpSize, threads_ - first);
    warp.alive = 0xffffffffu >> (kWarpSize - lanes);
    warp.waiting = 0;
  }
  for (int i = 0; i < threads_; i++) {
    prepare(i);
    make_ready(i);
  }
  block_begins_.release();
  while (diagnosis_.empty() && !ready_.empty()) resume(ready_.take(order_, random_));
  if (diagnosis_.empty() && returned_ < threads_) report_deadlock();
  block_ends_.acquire();
}

// After a failure, as the kernel's frames are still on the stacks.
void Scheduler::discard_fibers() {
  for (Fiber& fiber : fibers_) {
    fiber.stack.discard(launcher_);
    fiber = Fiber();
  }
}

cudaError_t Scheduler::launch(CallKernel call, AnyKernel kernel, void** arguments, dim3 grid, dim3 block,
                              SourceLine where) {
  call_ = call;
  kernel_ = kernel;
  arguments_ = arguments;
  grid_shape = grid;
  block_shape = block;
  threads_ = static_cast<int>(block.x * block.y * block.z);
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;

  const char* const variable = std::getenv("CUDA_ON_HOST_SEED");
  const unsigned long seed = variable ? std::strtoul(variable, nullptr, 10) : 0;
  order_ = seed == 0 ? Order::kAscending : seed == 1 ? Order::kDescending : Order::kRandom;
  random_.seed(static_cast<std::minstd_rand::result_type>(seed));
  std::vector<uint64_t> block_order(order_ == Order::kRandom ? blocks : 0);
  std::iota(block_order.begin(), block_order.end(), 0);
  std::shuffle(block_order.begin(), block_order.end(), random_);

  launcher_.begin();
  diagnosis_.clear();
  error_ = cudaErrorLaunchFailure;
  SharedMemory shared_memory;
  for (uint64_t i = 0; i < blocks && diagnosis_.empty(); i++) {
    const uint64_t number = order_ == Order::kAscending    ? i
                            : order_ == Order::kDescending ? blocks - 1 - i
                                                           : block_order[i];
    block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / grid.x / grid.y)};
    shared_memory.poison();
    run_block();
  }
  if (diagnosis_.empty()) return cudaSuccess;
  discard_fibers();
  std::fprintf(stderr, "cuda_on_host: %s\n  in the launch at %s\n", diagnosis_.c_str(), format(where).c_str());
  return error_;
}

bool valid(const dim3& grid, const dim3& block) {
  const bool block_fits = block.x >= 1 && block.x <= kMaxThreads && block.y >= 1 && block.y <= kMaxThreads &&
                          block.z >= 1 && block.z <= 64 && block.x * block.y * block.z <= kMaxThreads;
  const bool grid_fits =
      grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 && grid.y <= 0xffff && grid.z >= 1 && grid.z <= 0xffff;
  return block_fits && grid_fits;
}

}  // namespace

cudaError_t launch(CallKernel call, AnyKernel kernel, void** arguments, dim3 grid, dim3 block, size_t shared_bytes,
                   SourceLine where) {
  if (!valid(grid, block) || shared_bytes != 0) {
    std::fprintf(stderr, "cuda_on_host: %s: no launch: grid %s, block %s, %zu bytes of dynamic shared memory\n",
                 format(where).c_str(), format(uint3(grid)).c_str(), format(uint3(block)).c_str(), shared_bytes);
    return remember(shared_bytes != 0 ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration);
  }
  const std::lock_guard<std::mutex> lock(launching);
  return remember(scheduler.launch(call, kernel, arguments, grid, block, where));
}

uint64_t join_warp(WarpCall call, unsigned mask, uint64_t value, int source_lane, SourceLine where) {
  return scheduler.join_warp(call, mask, value, source_lane, where);
}

void join_block(SourceLine where) { scheduler.join_block(where); }

int lane() { return scheduler.lane(); }

cudaError_t take_last_error() { return std::exchange(last_error, cudaSuccess); }

void fail_misaligned(const volatile void* address, size_t bytes, SourceLine where) {
  char what[80];
  std::snprintf(what, sizeof what, "misaligned access of %zu bytes at 0x%zx", bytes,
                reinterpret_cast<uintptr_t>(address));
  scheduler.fail(where, what);
}

}  // namespace cuda_on_host

void cuda_on_host_assert_fail(const char* assertion, const char* file, unsigned line, const char*) noexcept {
  cuda_on_host::scheduler.fail({file, static_cast<int>(line)}, std::string("assertion failed: ") + assertion,
                               cudaErrorAssert);
}

uint64_t cuda_on_host_bytes_loaded() { return cuda_on_host::bytes_loaded; }
uint64_t cuda_on_host_bytes_stored() { return cuda_on_host::bytes_stored; }
void cuda_on_host_reset_counts() { cuda_on_host::bytes_loaded = cuda_on_host::bytes_stored = 0; }
