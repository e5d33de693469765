// Runs the CPU kernels of one instruction set over float32 z of all magnitudes, and prints the worst error of loss and
// slope in units in the last place, as tests/test_every_float32.py does where Python and torch run. No Python and no
// torch here, so a cross-compiler and an emulator are enough (`make arm64-check`).
//
//   sweep STEP: every STEP-th float32, counted by its bits
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "../csrc/cpu/kernels.h"
#include "../csrc/torch_abi.h"

namespace prefloss {

// In the place of torch's threads.
void parallel_for(int64_t count, int, void (*body)(int64_t begin, int64_t end, void* context), void* context) {
  body(0, count, context);
}

}  // namespace prefloss

namespace {

using prefloss::Column;
using prefloss::Dtype;

constexpr double kLossLimit = 1.45, kSlopeLimit = 1.3;  // those of tests/test_every_float32.py

// What is wrong with `actual` in float32 ulp of `expected`, subnormals included.
double ulp_between(float actual, double expected) {
  if (!(std::abs(expected) <= static_cast<double>(std::numeric_limits<float>::max())))
    return static_cast<double>(actual) == expected ? 0 : HUGE_VAL;
  int exponent = 0;
  std::frexp(expected, &exponent);
  const double error = std::ldexp(std::abs(static_cast<double>(actual) - expected), 24 - std::max(exponent, -125));
  return std::isnan(error) ? HUGE_VAL : error;
}

double true_loss(double z) {
  const double e = std::exp(-std::abs(z));
  return std::log1p(e) + std::max(-z, 0.0);
}

double true_slope(double z) {
  const double e = std::exp(-std::abs(z));
  return -(z >= 0 ? e : 1) / (1 + e);
}

Column column(std::vector<float>& values) { return {values.data(), Dtype::kFloat32, 1, 0}; }

struct Worst {
  double loss = 0, slope = 0;
  float at_loss = 0, at_slope = 0;
};

void measure(std::vector<float>& z, Worst& worst) {
  const auto& kernels = prefloss::cpu::baseline::kKernels;
  std::vector<float> zero(z.size()), terms(z.size()), slopes(z.size());
  float one = 1;
  const Column upstream{&one, Dtype::kFloat32, 0, 0};
  prefloss::Pairs pairs;
  pairs.chosen = column(z);
  pairs.rejected = column(zero);
  pairs.count = static_cast<int64_t>(z.size());
  prefloss::ForwardOutputs outputs;
  outputs.terms = column(terms);
  kernels.paired_forward(pairs, {}, outputs, 1);
  prefloss::Gradients gradients;
  gradients.chosen = column(slopes);
  kernels.paired_backward(pairs, {}, upstream, gradients, 1);
  for (size_t i = 0; i < z.size(); i++) {
    const double loss = ulp_between(terms[i], true_loss(static_cast<double>(z[i]))),
                 slope = ulp_between(slopes[i], true_slope(static_cast<double>(z[i])));
    if (loss > worst.loss) worst.loss = loss, worst.at_loss = z[i];
    if (slope > worst.slope) worst.slope = slope, worst.at_slope = z[i];
  }
}

}  // namespace

int main(int count, char** arguments) {
  const uint64_t step = count == 2 ? std::strtoull(arguments[1], nullptr, 10) : 0;
  if (step == 0) return std::fprintf(stderr, "usage: sweep STEP, a whole number >= 1\n"), 2;
  Worst worst;
  uint64_t measured = 0;
  std::vector<float> z;
  const auto measure_all = [&] {
    measure(z, worst);
    measured += z.size();
    z.clear();
  };
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += step) {
    const uint32_t its = static_cast<uint32_t>(bits);
    float value = 0;
    std::memcpy(&value, &its, sizeof value);
    if (!std::isnan(value)) z.push_back(value);
    if (z.size() == 1 << 16) measure_all();
  }
  measure_all();
  std::printf("%llu float32 z: worst loss %.3f ulp (z = %.9g), worst slope %.3f ulp (z = %.9g)\n",
              static_cast<unsigned long long>(measured), worst.loss, static_cast<double>(worst.at_loss), worst.slope,
              static_cast<double>(worst.at_slope));
  return !(worst.loss <= kLossLimit && worst.slope <= kSlopeLimit);
}
