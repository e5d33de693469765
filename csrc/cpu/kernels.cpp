// Which kernels run on this processor, and how many threads they may use.
#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(PREFLOSS_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace prefloss::cpu {
namespace {

#if defined(PREFLOSS_X86) && defined(_MSC_VER)
bool bits_set(int value, int mask) { return (value & mask) == mask; }

std::vector<const Kernels*> supported() {
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const bool fma_f16c_osxsave = bits_set(leaf1[2], (1 << 12) | (1 << 29) | (1 << 27));
  const uint64_t saved = fma_f16c_osxsave ? _xgetbv(0) : 0;
  std::vector<const Kernels*> list{&kBaseline};
  if ((saved & 0x6) == 0x6 && bits_set(leaf7[1], 1 << 5)) list.push_back(&kAvx2);
  if (list.size() == 2 && (saved & 0xe6) == 0xe6 && bits_set(leaf7[1], (1 << 16) | (1 << 17) | (1 << 30) | (1 << 31)))
    list.push_back(&kAvx512);
  return list;
}
#else
std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> list{&kBaseline};
#ifdef PREFLOSS_X86
  // The half-precision conversions (F16C) are older than AVX2, and GCC before 11 cannot ask for them.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    list.push_back(&kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      list.push_back(&kAvx512);
  }
#endif
  return list;
}
#endif

const Kernels& choose() {
  const std::vector<const Kernels*> list = supported();
  const char* wanted = std::getenv("PREFLOSS_CPU");
  if (wanted == nullptr || *wanted == '\0') return *list.back();
  std::string names;
  for (const Kernels* candidate : list) {
    if (std::string(wanted) == candidate->name) return *candidate;
    names += (names.empty() ? "" : ", ") + std::string(candidate->name);
  }
  throw std::runtime_error("environment variable PREFLOSS_CPU is '" + std::string(wanted) +
                           "'; this processor accepts " + names);
}

std::atomic<bool> in_forked_child{false};

#ifndef _WIN32
// A child of a process in which no thread pool had started could use threads, but nobody can ask libgomp whether one
// has.
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
#endif

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

int usable_threads(int wanted) { return in_forked_child ? 1 : wanted; }

}  // namespace prefloss::cpu
