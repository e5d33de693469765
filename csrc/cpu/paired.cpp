// The paired loss on the CPU: forward, backward, double backward. Compiled once per instruction set.
#include <algorithm>
#include <vector>

#include "chunks.h"
#include "instruction_set.h"
#include "threads.h"

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

}  // namespace

namespace PREFLOSS_CPU_PATH {

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

}  // namespace PREFLOSS_CPU_PATH
}  // namespace prefloss::cpu
