// stack.h in x86-64 assembler. Compiled without sanitizers, like the scheduler.
#include "stack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifndef __x86_64__
#error "cuda_on_host switches fibers in x86-64 assembler: see cuda_on_host_switch"
#endif

extern "C" {

// The sanitizers' interfaces; null where no sanitizer is loaded.
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* stack, size_t bytes);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** stack, size_t* bytes);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* clock);
[[gnu::weak]] void __tsan_release(void* clock);

// Saves the callee-saved registers and the stack pointer, and goes on where the other stack left off.
[[gnu::visibility("hidden")]] void cuda_on_host_switch(void** saved_stack_pointer, void* other_stack_pointer);
}

asm(R"(
.text
.globl cuda_on_host_switch
.hidden cuda_on_host_switch
.type cuda_on_host_switch, @function
cuda_on_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_host_switch, . - cuda_on_host_switch
)");

namespace cuda_on_host {
namespace {

constexpr size_t kSavedRegisters = 6;
constexpr size_t kGuardBytes = 4096;
// Generous, since a sanitizer writes its report on it.
constexpr size_t kStackBytes = 256 * 1024;

constexpr unsigned kTsanNoSync = 1, kTsanSync = 0;

}  // namespace

void Clock::release() {
  if (__tsan_release) __tsan_release(&address_);
}

void Clock::acquire() {
  if (__tsan_acquire) __tsan_acquire(&address_);
}

bool has_thread_sanitizer() { return __tsan_release != nullptr; }

void Launcher::begin() { tsan_fiber_ = __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr; }

// As if cuda_on_host_switch had left it just before `main`.
void Stack::prepare(void (*main)()) {
  if (!memory_) {
    void* const memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
      std::perror("cuda_on_host: no memory for stacks");
      std::abort();
    }
    memory_ = static_cast<char*>(memory) + kGuardBytes;
    if (__tsan_create_fiber) tsan_fiber_ = __tsan_create_fiber(0);
  }
  // Two words on top: the address to go to, and the return address of `main`, which does not return.
  auto* const top = reinterpret_cast<uintptr_t*>(memory_ + kStackBytes) - 2;
  top[0] = reinterpret_cast<uintptr_t>(main);
  top[1] = 0;
  pointer_ = top - kSavedRegisters;
  std::fill_n(top - kSavedRegisters, kSavedRegisters, 0);
  fake_stack_ = nullptr;
}

void Stack::arrive(Launcher& launcher) {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &launcher.stack_, &launcher.stack_bytes_);
}

void Stack::resume(Launcher& launcher) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&launcher.fake_stack_, memory_, kStackBytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(tsan_fiber_, kTsanNoSync);
  cuda_on_host_switch(&launcher.stack_pointer_, pointer_);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(launcher.fake_stack_, nullptr, nullptr);
}

void Stack::suspend(Launcher& launcher, bool returned) {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(returned ? nullptr : &fake_stack_, launcher.stack_, launcher.stack_bytes_);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(launcher.tsan_fiber_, kTsanNoSync);
  cuda_on_host_switch(&pointer_, launcher.stack_pointer_);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
}

void Stack::discard(Launcher& launcher) {
  if (!memory_) return;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(memory_, kStackBytes);
  if (__tsan_switch_to_fiber) {
    // What the fiber did comes before what the launching thread does from now on.
    __tsan_switch_to_fiber(tsan_fiber_, kTsanSync);
    __tsan_switch_to_fiber(launcher.tsan_fiber_, kTsanSync);
    __tsan_destroy_fiber(tsan_fiber_);
  }
  munmap(memory_ - kGuardBytes, kGuardBytes + kStackBytes);
  *this = Stack();
}

}  // namespace cuda_on_host
