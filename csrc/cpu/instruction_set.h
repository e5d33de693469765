// The kernels of one instruction set, each compiled once for every set. What crosses from one of their files to another
// lies in a namespace with the set's name (PREFLOSS_CPU_PATH: baseline, avx2 or avx512), and everything else has
// internal linkage: so the linker cannot take one set's code for another's.
#pragma once

#include "../evaluation.h"
#include "../groups.h"
#include "ranked_items.h"

namespace prefloss::cpu::PREFLOSS_CPU_PATH {

// See `Kernels`.
void paired_forward(const Pairs&, const Divisor&, const ForwardOutputs&, int threads);
void paired_backward(const Pairs&, const Divisor&, const Column& upstream, const Gradients&, int threads);
void paired_double_backward(const Pairs&, const Divisor&, const Column& upstream, const Gradients& directions,
                            const Column& upstream_gradient, const Gradients&, int threads);
bool indexed_forward(const Comparisons&, const Pairs&, const Divisor&, const ForwardOutputs&, void* slopes,
                     int threads);
GroupStatus grouped_forward(const Groups&, const GroupAverage&, const GroupOutputs&, int threads);
void grouped_backward(const Groups&, const void* slopes, const GroupUpstream&, const Column& result, int threads);
GroupStatus grouped_double_backward(const Groups&, const void* slopes, const double* factors, const GroupUpstream&,
                                    const Column& direction, const Column& gradient, double* along, int threads);
GroupStatus grouped_derivatives(const Groups&, const GroupAverage&, double* gradient, double* curvatures, int threads);
void pair_statistics(const EvaluatedPairs&, double* result);
void add_statistics(const EvaluatedPairs&, const StatisticSums&);

// The sums over all pairs of a long list in time linear in its items, with the options of `groups`; adds to their
// slopes. long_list/long_list.cpp
void forward_long_list(RankedItems<float>&, const Groups&, bool statistics, double* sums, int threads);
void forward_long_list(RankedItems<double>&, const Groups&, bool statistics, double* sums, int threads);

// The same of a short list, pair by pair: the sum of the terms. False, with nothing added, where its pairs take an
// exponential each or have other terms than softplus.
bool forward_leaf(RankedItems<float>&, const Groups&, double& terms);

}  // namespace prefloss::cpu::PREFLOSS_CPU_PATH
