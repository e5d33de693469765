// Columns of memory as blocks of contiguous Real, and back: every dtype, any stride. Compiled once per instruction set,
// so everything here has internal linkage.
#pragma once

#include <algorithm>

#include "../pairs.h"
#include "../storage.h"

#if defined(__F16C__) || (defined(_MSC_VER) && defined(__AVX2__))
#define PREFLOSS_F16C
#include <immintrin.h>
#endif

namespace prefloss::cpu {
namespace {

constexpr int kBlock = 512;

template <typename Real>
struct alignas(64) Buffer {
  Real values[kBlock];
};

// Contiguous entries as Real, and back.
template <typename Real, typename Stored>
void widen_all(const Stored* first, int count, Real* values) {
  for (int i = 0; i < count; i++) values[i] = static_cast<Real>(widen(first[i]));
}

template <typename Stored, typename Real>
void narrow_all(const Real* values, int count, Stored* first) {
  for (int i = 0; i < count; i++) narrow(values[i], first[i]);
}

#ifdef PREFLOSS_F16C
// The hardware's conversions, eight at a time, where there are any; they give the same values.
inline __m256 eight_floats(const Float16* first) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first)));
}

inline void widen_all(const Float16* first, int count, float* values) {
  int i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(values + i, eight_floats(first + i));
  for (; i < count; i++) values[i] = widen(first[i]);
}

inline void narrow_all(const float* values, int count, Float16* first) {
  int i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(first + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; i++) narrow(values[i], first[i]);
}
#endif

template <typename Real, typename Stored>
void gather(const Stored* first, int64_t stride, int count, Real* values) {
  if (stride == 1) return widen_all(first, count, values);
  for (int i = 0; i < count; i++) values[i] = static_cast<Real>(widen(first[i * stride]));
}

template <typename Stored, typename Real>
void scatter(const Real* values, int count, int64_t stride, Stored* first) {
  if (stride == 1) return narrow_all(values, count, first);
  for (int i = 0; i < count; i++) narrow(values[i], first[i * stride]);
}

template <typename Stored>
constexpr Dtype kDtypeOf = sizeof(Stored) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;
template <>
constexpr Dtype kDtypeOf<BFloat16> = Dtype::kBFloat16;
template <>
constexpr Dtype kDtypeOf<Float16> = Dtype::kFloat16;

// Whether a column's memory is contiguous Real.
template <typename Real>
bool is_in_place(const Column& column) {
  return column && column.dtype == kDtypeOf<Real> && column.stride == 1;
}

// The entries [begin, begin + count) of a row, as Real.
template <typename Real>
void read_entries(const Column& column, int64_t row, int64_t begin, int count, Real* values) {
  switch (column.dtype) {
    case Dtype::kFloat64:
      return gather(column.entry<double>(row, begin), column.stride, count, values);
    case Dtype::kFloat32:
      return gather(column.entry<float>(row, begin), column.stride, count, values);
    case Dtype::kBFloat16:
      return gather(column.entry<BFloat16>(row, begin), column.stride, count, values);
    case Dtype::kFloat16:
      return gather(column.entry<Float16>(row, begin), column.stride, count, values);
    default:  // a mask: rewards and options have no other dtype
      return gather(column.entry<bool>(row, begin), column.stride, count, values);
  }
}

// The same as contiguous Real: in place where they are that already, else in `buffer`.
template <typename Real>
const Real* load(const Column& column, int64_t row, int64_t begin, int count, Buffer<Real>& buffer) {
  if (is_in_place<Real>(column)) return column.entry<Real>(row, begin);
  read_entries(column, row, begin, count, buffer.values);
  return buffer.values;
}

// An optional column: a number fills its buffer once, before the blocks.
template <typename Real>
struct OptionalColumn {
  const Column& column;
  Buffer<Real> buffer;

  OptionalColumn(const Column& given, double number) : column(given) {
    if (!column) std::fill(buffer.values, buffer.values + kBlock, static_cast<Real>(number));
  }

  const Real* load(int64_t row, int64_t begin, int count) {
    return column ? cpu::load(column, row, begin, count, buffer) : buffer.values;
  }
};

// Where a block's results are computed: in place, or in `buffer`, from which `store` takes them.
template <typename Real>
Real* result(const Column& column, int64_t row, int64_t begin, Buffer<Real>& buffer) {
  return is_in_place<Real>(column) ? column.entry<Real>(row, begin) : buffer.values;
}

// Values to the entries [begin, begin + count) of a row.
template <typename Real>
void write_entries(const Real* values, const Column& column, int64_t row, int64_t begin, int count) {
  if (column.dtype == Dtype::kFloat32) scatter(values, count, column.stride, column.entry<float>(row, begin));
  if constexpr (sizeof(Real) == sizeof(double)) {
    if (column.dtype == Dtype::kFloat64) scatter(values, count, column.stride, column.entry<double>(row, begin));
  } else {
    if (column.dtype == Dtype::kBFloat16) scatter(values, count, column.stride, column.entry<BFloat16>(row, begin));
    if (column.dtype == Dtype::kFloat16) scatter(values, count, column.stride, column.entry<Float16>(row, begin));
  }
}

template <typename Real>
void store(const Column& column, int64_t row, int64_t begin, int count, const Buffer<Real>& buffer) {
  if (column && !is_in_place<Real>(column)) write_entries(buffer.values, column, row, begin, count);
}

}  // namespace
}  // namespace prefloss::cpu
