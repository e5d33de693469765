// Columns of device memory as groups of Real in registers, and back: every dtype, any stride. Mirrors cpu/columns.h.
#pragma once

#include <type_traits>

#include "../pairs.h"
#include "../storage.h"

namespace prefloss::cuda {
namespace {

// The type of the computation.
template <typename Stored>
using RealOf = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

// A thread has so many consecutive pairs at a time: 16 bytes of rewards, the most that one instruction loads.
template <typename Stored>
constexpr int kGroup = 16 / static_cast<int>(sizeof(Stored));

// So many bytes in one instruction.
template <int kBytes>
using Word = std::conditional_t<
    kBytes == 16, uint4,
    std::conditional_t<
        kBytes == 8, uint2,
        std::conditional_t<kBytes == 4, unsigned int, std::conditional_t<kBytes == 2, unsigned short, unsigned char>>>>;

// kCount consecutive entries, as they are stored.
template <typename Stored, int kCount>
struct Raw {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(Stored)), kWordBytes = kBytes < 16 ? kBytes : 16;
  static constexpr int kWords = kBytes / kWordBytes;
  Word<kWordBytes> words[kWords];

  // Whether they can be loaded and stored a word at a time.
  static __device__ __forceinline__ bool fits(const Stored* first, int64_t stride) {
    return stride == 1 && reinterpret_cast<uintptr_t>(first) % kWordBytes == 0;
  }

  __device__ __forceinline__ void load(const Stored* first) {
#pragma unroll
    for (int w = 0; w < kWords; w++) words[w] = __ldg(reinterpret_cast<const Word<kWordBytes>*>(first) + w);
  }

  __device__ __forceinline__ void store(Stored* first) const {
#pragma unroll
    for (int w = 0; w < kWords; w++) __stwb(reinterpret_cast<Word<kWordBytes>*>(first) + w, words[w]);
  }

  template <typename Real>
  __device__ __forceinline__ void widen_to(Real (&values)[kCount]) const {
    if constexpr (std::is_same_v<Stored, BFloat16> &&
                  kCount % 2 == 0) {  // one instruction each; one by one, it is three
      uint32_t pairs[kCount / 2];
      memcpy(pairs, words, sizeof words);
#pragma unroll
      for (int i = 0; i < kCount; i += 2) {
        values[i] = from_bits(pairs[i / 2] << 16);
        values[i + 1] = from_bits(pairs[i / 2] & 0xffff0000u);
      }
    } else {
      Stored entries[kCount];
      memcpy(entries, words, sizeof words);
#pragma unroll
      for (int i = 0; i < kCount; i++) values[i] = static_cast<Real>(widen(entries[i]));
    }
  }

  template <typename Real>
  __device__ __forceinline__ void narrow_from(const Real (&values)[kCount]) {
    Stored entries[kCount];
#pragma unroll
    for (int i = 0; i < kCount; i++) narrow(values[i], entries[i]);
    memcpy(words, entries, sizeof words);
  }
};

// One entry, in one instruction.
template <typename Stored>
__device__ __forceinline__ Stored load_one(const Stored* entry) {
  Stored value;
  const Word<sizeof(Stored)> word = __ldg(reinterpret_cast<const Word<sizeof(Stored)>*>(entry));
  memcpy(&value, &word, sizeof value);
  return value;
}

template <typename Stored>
__device__ __forceinline__ void store_one(Stored* entry, Stored value) {
  Word<sizeof(Stored)> word;
  memcpy(&word, &value, sizeof value);
  __stwb(reinterpret_cast<Word<sizeof(Stored)>*>(entry), word);
}

// The first `count` of kCount entries; 0 in place of the others.
template <typename Stored, typename Real, int kCount>
__device__ __forceinline__ void load_as(const Column& column, int64_t row, int64_t index, int count,
                                        Real (&values)[kCount]) {
  const Stored* first = column.entry<Stored>(row, index);
  if (count == kCount && Raw<Stored, kCount>::fits(first, column.stride)) {
    Raw<Stored, kCount> raw;
    raw.load(first);
    raw.widen_to(values);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i++, first += column.stride)
      values[i] = i < count ? static_cast<Real>(widen(load_one(first))) : Real(0);
  }
}

template <typename Stored, typename Real, int kCount>
__device__ __forceinline__ void store_as(const Column& column, int64_t row, int64_t index, int count,
                                         const Real (&values)[kCount]) {
  Stored* first = column.entry<Stored>(row, index);
  if (count == kCount && Raw<Stored, kCount>::fits(first, column.stride)) {
    Raw<Stored, kCount> raw;
    raw.narrow_from(values);
    raw.store(first);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i++, first += column.stride) {
      if (i >= count) break;
      Stored entry;
      narrow(values[i], entry);
      store_one(first, entry);
    }
  }
}

// An optional column has float32 entries or the rewards' dtype, or is, if `kMask`, a mask. Calls call(a null pointer of
// that type).
template <typename Stored, bool kMask, typename Call>
__device__ __forceinline__ auto with_optional(const Column& column, const Call& call) {
  if (column.dtype == Dtype::kFloat32) return call(static_cast<float*>(nullptr));
  if (kMask && column.dtype == Dtype::kBool) return call(static_cast<bool*>(nullptr));
  return call(static_cast<Stored*>(nullptr));
}

template <typename Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

// A number stands for a column that is not given.
template <typename Stored, bool kMask = false, int kCount>
__device__ __forceinline__ void load_optional(const Column& column, double number, int64_t row, int64_t index,
                                              int count, RealOf<Stored> (&values)[kCount]) {
  using Real = RealOf<Stored>;
  if (!column) {
#pragma unroll
    for (int i = 0; i < kCount; i++) values[i] = static_cast<Real>(number);
  } else {
    with_optional<Stored, kMask>(
        column, [&](auto* entry) { load_as<Pointee<decltype(entry)>>(column, row, index, count, values); });
  }
}

template <typename Stored, int kCount>
__device__ __forceinline__ void store_optional(const Column& column, int64_t row, int64_t index, int count,
                                               const RealOf<Stored> (&values)[kCount]) {
  if (!column) return;
  if (column.dtype == Dtype::kFloat32)
    store_as<float>(column, row, index, count, values);
  else
    store_as<Stored>(column, row, index, count, values);
}

// Calls call(a null pointer of the type that the rewards are stored in).
template <typename Call>
auto with_stored(Dtype rewards, const Call& call) {
  switch (rewards) {
    case Dtype::kFloat64:
      return call(static_cast<double*>(nullptr));
    case Dtype::kBFloat16:
      return call(static_cast<BFloat16*>(nullptr));
    case Dtype::kFloat16:
      return call(static_cast<Float16*>(nullptr));
    default:
      return call(static_cast<float*>(nullptr));
  }
}

}  // namespace
}  // namespace prefloss::cuda
