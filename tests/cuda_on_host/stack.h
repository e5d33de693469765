// The stack that each CUDA thread runs on, and the switch to it and back, of which the sanitizers are told.
#pragma once

#include <cstddef>

namespace [[gnu::visibility("hidden")]] cuda_on_host {

// For the thread sanitizer: what came before release() comes before what follows acquire(). Nothing where it is not
// loaded.
class Clock {
 public:
  void release();
  void acquire();

 private:
  char address_ = 0;
};

bool has_thread_sanitizer();

// The launching thread, which all fibers switch back to.
class Launcher {
 public:
  // Before the first fiber of a launch.
  void begin();

 private:
  friend class Stack;
  void *stack_pointer_ = nullptr, *fake_stack_ = nullptr, *tsan_fiber_ = nullptr;
  const void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
};

class Stack {
 public:
  // The next resume() calls `main`, which calls arrive() first, and does not return.
  void prepare(void (*main)());
  void arrive(Launcher& launcher);

  // From the launching thread to this stack, until suspend() is called on it. With `returned` it is not resumed.
  void resume(Launcher& launcher);
  void suspend(Launcher& launcher, bool returned);

  // Gives the memory back, whatever frames are still on it.
  void discard(Launcher& launcher);

 private:
  char* memory_ = nullptr;
  void* pointer_ = nullptr;
  void* fake_stack_ = nullptr;  // the address sanitizer's
  void* tsan_fiber_ = nullptr;
};

}  // namespace cuda_on_host
