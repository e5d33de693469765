// Which kernels run on this processor.
#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

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
  std::vector<const Kernels*> list{&baseline::kKernels};
  if ((saved & 0x6) == 0x6 && bits_set(leaf7[1], 1 << 5)) list.push_back(&avx2::kKernels);
  if (list.size() == 2 && (saved & 0xe6) == 0xe6 && bits_set(leaf7[1], (1 << 16) | (1 << 17) | (1 << 30) | (1 << 31)))
    list.push_back(&avx512::kKernels);
  return list;
}
#else
std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> list{&baseline::kKernels};
#ifdef PREFLOSS_X86
  // The half-precision conversions (F16C) are older than AVX2, and GCC before 11 cannot ask for them.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    list.push_back(&avx2::kKernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      list.push_back(&avx512::kKernels);
  }
#endif
  return list;
}
#endif

std::string wanted() {
  const char* name = std::getenv("PREFLOSS_CPU");
  return name == nullptr ? "" : name;
}

const Kernels& choose() {
  const std::vector<const Kernels*> list = supported();
  // Where losses are composed, prefloss.evaluate still has the best kernels.
  if (wanted().empty() || is_composed()) return *list.back();
  std::string names;
  for (const Kernels* candidate : list) {
    if (wanted() == candidate->name) return *candidate;
    names += (names.empty() ? "" : ", ") + std::string(candidate->name);
  }
  throw std::runtime_error("environment variable PREFLOSS_CPU is '" + wanted() + "'; this processor accepts " + names +
                           ", or composed, for losses without kernels");
}

}  // namespace

bool is_composed() { return wanted() == "composed"; }

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace prefloss::cpu
