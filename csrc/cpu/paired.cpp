// The paired loss on the CPU: forward, backward, double backward. Compiled once per instruction set (PREFLOSS_CPU_PATH,
// PREFLOSS_CPU_KERNELS).
#include <algorithm>
#include <vector>

#include "chunks.h"
#include "grouped.h"
#include "indexed.h"
#include "kernels.h"

namespace prefloss::cpu {
namespace {

template <typename Real>
void forward(const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs, int threads) {
  const int64_t chunks = chunks_of(pairs);
  std::vector<Partial> partials(chunks > 1 ? static_cast<size_t>(chunks) : 0);
  for (int64_t row = 0; row < pairs.rows; row++) {
    const auto part = [&](int64_t chunk) { return forward_chunk<Real>(pairs, outputs, row, chunk); };
    Partial total = Partial::zero();
    if (chunks == 1) {
      total = part(0);
    } else {
      for_chunks(chunks, threads, [&](int64_t chunk) { partials[static_cast<size_t>(chunk)] = part(chunk); });
      for (const Partial& partial : partials) total.add(partial);
    }
    finish_row<Real>(total, divisor, outputs, row);
  }
}

template <typename Real>
void backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& gradients,
              int threads) {
  const int64_t chunks = chunks_of(pairs);
  const bool one_a_row = upstream.stride == 0;
  for (int64_t row = 0; row < pairs.rows && chunks > 0; row++) {
    const double scale = one_a_row ? row_scale<Real>(upstream, divisor, row) : 1.0;
    for_chunks(chunks, threads, [&](int64_t chunk) {
      backward_chunk<Real>(pairs, scale, one_a_row ? Column{} : upstream, gradients, row, chunk);
    });
  }
}

template <typename Real>
void double_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& directions,
                     const Column& upstream_gradient, const Gradients& gradients, int threads) {
  const int64_t chunks = chunks_of(pairs);
  const bool one_a_row = upstream.stride == 0;
  std::vector<double> partials(static_cast<size_t>(chunks));
  for (int64_t row = 0; row < pairs.rows; row++) {
    const double scale = one_a_row ? row_scale<Real>(upstream, divisor, row) : 1.0,
                 inverse = one_a_row ? 1.0 / divisor.of_row(row) : 1.0;
    for_chunks(chunks, threads, [&](int64_t chunk) {
      partials[static_cast<size_t>(chunk)] = double_backward_chunk<Real>(
          pairs, scale, inverse, one_a_row ? Column{} : upstream, directions, upstream_gradient, gradients, row, chunk);
    });
    double total = 0;
    for (const double partial : partials) total += partial;
    if (upstream_gradient && upstream_gradient.stride == 0)
      *upstream_gradient.entry<Real>(row, 0) = static_cast<Real>(total);
  }
}

bool in_double(const Pairs& pairs) { return pairs.chosen.dtype == Dtype::kFloat64; }

void paired_forward(const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs, int threads) {
  in_double(pairs) ? forward<double>(pairs, divisor, outputs, threads)
                   : forward<float>(pairs, divisor, outputs, threads);
}

void paired_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream, const Gradients& gradients,
                     int threads) {
  in_double(pairs) ? backward<double>(pairs, divisor, upstream, gradients, threads)
                   : backward<float>(pairs, divisor, upstream, gradients, threads);
}

void paired_double_backward(const Pairs& pairs, const Divisor& divisor, const Column& upstream,
                            const Gradients& directions, const Column& upstream_gradient, const Gradients& gradients,
                            int threads) {
  in_double(pairs)
      ? double_backward<double>(pairs, divisor, upstream, directions, upstream_gradient, gradients, threads)
      : double_backward<float>(pairs, divisor, upstream, directions, upstream_gradient, gradients, threads);
}

bool indexed_forward(const Comparisons& comparisons, const Pairs& pairs, const Divisor& divisor,
                     const ForwardOutputs& outputs, double* slopes, int threads) {
  return comparisons.scores.dtype == Dtype::kFloat64
             ? indexed<double>(comparisons, pairs, divisor, outputs, slopes, threads)
             : indexed<float>(comparisons, pairs, divisor, outputs, slopes, threads);
}

void grouped_forward(const Groups& groups, const GroupAverage& average, const GroupOutputs& outputs, int threads) {
  groups.wide ? grouped<double>(groups, average, outputs, threads) : grouped<float>(groups, average, outputs, threads);
}

void grouped_backward(const Groups& groups, const void* slopes, const double* factors, const GroupUpstream& upstream,
                      void* result, int threads) {
  groups.wide ? scale_slopes(groups, static_cast<const double*>(slopes), factors, upstream,
                             static_cast<double*>(result), threads)
              : scale_slopes(groups, static_cast<const float*>(slopes), factors, upstream, static_cast<float*>(result),
                             threads);
}

void grouped_double_backward(const Groups& groups, const void* direction, void* result, int threads) {
  groups.wide ? grouped_second(groups, static_cast<const double*>(direction), static_cast<double*>(result), threads)
              : grouped_second(groups, static_cast<const float*>(direction), static_cast<float*>(result), threads);
}

}  // namespace

const Kernels PREFLOSS_CPU_KERNELS = {PREFLOSS_CPU_PATH, paired_forward,  paired_backward,  paired_double_backward,
                                      indexed_forward,   grouped_forward, grouped_backward, grouped_double_backward};

}  // namespace prefloss::cpu
