// Pairs that are comparisons of items by index: the loss, the slopes of the items, and their losses for PairStats, in
// one pass. Compiled once per instruction set.
//
// A chunk's scores are gathered into contiguous memory, which the loops over pairs then take for any other chunk. The
// slopes of an item are the sum over its comparisons. The comparisons are cut into stripes, by the sizes alone; each
// adds into float64 sums of its own, one an item, and those are added in order: no atomics, and the same bits for any
// number of threads.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "chunks.h"
#include "instruction_set.h"
#include "threads.h"

namespace prefloss::cpu {
namespace {

constexpr int64_t kMostStripes = 16;
constexpr int64_t kItems = 1024;  // whose sums a thread adds at a time
// An item has half the weight of its comparisons; one that is in all has half of all, but for rounding.
constexpr double kOneInAll = 1e-9;

// The stripes' sums, so many an item, never take more memory than 2 float64 a comparison.
int64_t stripes_of(const Pairs& pairs, int64_t items, int64_t sums) {
  const int64_t most = std::clamp<int64_t>(chunks_of(pairs), 1, kMostStripes);
  return sums == 0 ? most : std::clamp<int64_t>(2 * pairs.count / std::max<int64_t>(items * sums, 1), 1, most);
}

// What an item has of its comparisons: half of each one's weight, and of its weighted loss.
struct ItemLoss {
  double weight = 0, loss = 0;

  void add(const ItemLoss& other) {
    weight += other.weight;
    loss += other.loss;
  }
};

// Puts the items in the place of the comparisons as units, and says that all these are one set: no two sets of units
// are independent whose comparisons share items.
void set_items(const std::vector<ItemLoss>& items, int64_t count, Partial& total, double* linked) {
  // The comparisons' own squares, about the loss instead of the mean that the squared weights give.
  const double n = total.sums[kCount], v2 = total.sums[kWeightSquared], scale = total.sums[kWeightScale];
  const double from = total.sums[kSquaredWeightLoss] / v2 - total.sums[kWeightedLoss] / total.weight;
  const double squares = total.sums[kSquaredWeightLossSquares] + from * from * v2;
  Partial units = Partial::zero();
  double most = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    Buffer<double> weight, loss;
    double heaviest = 0, sums[kGathered] = {};
    int there = 0;
    for (int64_t i = begin; i < std::min(count, begin + kBlock); i++) {
      const ItemLoss& item = items[static_cast<size_t>(i)];
      if (item.weight == 0) continue;
      weight.values[there] = item.weight;
      loss.values[there++] = item.loss / item.weight;
      heaviest = std::max(heaviest, std::abs(item.weight));
    }
    if (there == 0) continue;
    sums[kUnits] = there;
    set_units(
        there, weight_scale(heaviest), [&](int i) { return weight.values[i]; }, [&](int i) { return loss.values[i]; },
        sums);
    units.add_units(sums);
    most = std::max(most, heaviest);
  }
  std::copy(units.sums + kUnits, units.sums + kCorrect, total.sums + kUnits);
  if (n == 0) return;
  const double ratio = scale / total.sums[kWeightScale];
  linked[0] = most < 0.5 * std::abs(total.weight) * (1 - kOneInAll) ? n * n : 2 * n * n;
  linked[1] = squares * ratio * ratio;
}

// The scores as contiguous Real: in place where they are that already, else in `copy`.
template <typename Real>
const Real* contiguous(const Comparisons& comparisons, std::vector<Real>& copy) {
  const Column& scores = comparisons.scores;
  if (is_in_place<Real>(scores)) return scores.entry<Real>(0, 0);
  copy.resize(static_cast<size_t>(comparisons.items));
  Buffer<Real> buffer;
  for (int64_t begin = 0; begin < comparisons.items; begin += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, comparisons.items - begin));
    const Real* block = load(scores, 0, begin, count, buffer);
    std::copy(block, block + count, &copy[static_cast<size_t>(begin)]);
  }
  return copy.data();
}

// An optional column of the pairs from `begin` on.
Column from(Column column, int64_t begin) {
  if (column)
    column.data = static_cast<char*>(column.data) + begin * column.stride * kBytes[static_cast<int>(column.dtype)];
  return column;
}

// One chunk of comparisons, and memory for what the loops over pairs read and write.
template <typename Real, typename Integer>
struct ChunkOfItems {
  const Comparisons& comparisons;
  const Real* scores;
  const int64_t room;  // pairs of the largest chunk
  const int64_t chosen_stride = comparisons.chosen.stride, rejected_stride = comparisons.rejected.stride;
  const Integer *chosen = nullptr, *rejected = nullptr;
  int64_t size = 0;
  std::unique_ptr<Real[]> memory{new Real[static_cast<size_t>(4 * room)]};

  Real* values(int which) const { return &memory[static_cast<size_t>(which * room)]; }
  Column column(int which) const { return {values(which), kDtypeOf<Real>, 1, 0}; }

  // False where an index is out of range; nothing is read by it.
  bool load_from(int64_t begin, int64_t count) {
    size = std::min(kChunk, count - begin);
    chosen = comparisons.chosen.entry<const Integer>(0, begin);
    rejected = comparisons.rejected.entry<const Integer>(0, begin);
    constexpr std::integral_constant<int64_t, 1> kOne;  // the compiler's vectors need to know it
    if (chosen_stride == 1 && rejected_stride == 1) return gather(kOne, kOne);
    return gather(chosen_stride, rejected_stride);
  }

  template <typename Stride>
  bool gather(Stride to_chosen, Stride to_rejected) {
    using Unsigned = std::make_unsigned_t<Integer>;  // where a negative index is a large one
    Unsigned largest = 0;
    for (int64_t i = 0; i < size; i++) {
      const Unsigned a = static_cast<Unsigned>(chosen[i * to_chosen]),
                     b = static_cast<Unsigned>(rejected[i * to_rejected]);
      largest = std::max(largest, std::max(a, b));
    }
    const uint64_t end = std::min<uint64_t>(comparisons.items, uint64_t{std::numeric_limits<Integer>::max()} + 1);
    if (size > 0 && largest >= end) return false;
    Real *a = values(0), *b = values(1);
    for (int64_t i = 0; i < size; i++) {
      a[i] = scores[chosen[i * to_chosen]];
      b[i] = scores[rejected[i * to_rejected]];
    }
    return true;
  }

  // The chunk as pairs of their own, of which it is the only one.
  Pairs pairs(const Pairs& all, int64_t begin) {
    return {column(0), column(1),  from(all.margin, begin), from(all.weight, begin), from(all.target, begin), 1,
            size,      all.options};
  }

  // The sums of these pairs; their losses are added to those of their items.
  Partial forward_with_losses(const Pairs& its, const ForwardOutputs& outputs, ItemLoss* of_items) const {
    return general_forward<Real>(
        its, outputs, 0, 0, [&](int64_t begin, int count, const Real* weight, const Real* loss, const Real* remainder) {
          Buffer<double> half, half_loss;
          for (int i = 0; i < count; i++) {  // a pair of weight 0 counts 0, even if its loss is NaN
            const double l = static_cast<double>(loss[i]) + static_cast<double>(remainder[i]);
            half.values[i] = 0.5 * static_cast<double>(weight[i]);
            half_loss.values[i] = weight[i] != 0 ? half.values[i] * l : 0.0;
          }
          for (int i = 0; i < count; i++) {
            const ItemLoss each{half.values[i], half_loss.values[i]};
            of_items[chosen[(begin + i) * chosen_stride]].add(each);
            of_items[rejected[(begin + i) * rejected_stride]].add(each);
          }
        });
  }

  // Adds the slopes of these pairs to the sums of their items. Weights multiply here, in double: float32 weights near
  // the ends of their range would underflow or overflow before the sums are divided by their total. A mask multiplies
  // where the slopes are computed.
  void add_slopes_of(Pairs its, double* sums) const {
    const Column weight = its.weight.dtype == Dtype::kBool ? Column{} : its.weight;
    if (weight) its.weight = {};
    backward_chunk<Real>(its, 1, Column{}, {column(2), column(3), {}}, 0, 0);
    const Real *a = values(2), *b = values(3);
    const auto add = [&](int64_t i, double of_chosen, double of_rejected) {
      sums[chosen[i * chosen_stride]] += of_chosen;
      sums[rejected[i * rejected_stride]] += of_rejected;
    };
    if (!weight) {
      for (int64_t i = 0; i < size; i++) add(i, static_cast<double>(a[i]), static_cast<double>(b[i]));
      return;
    }
    Buffer<double> buffer, of_chosen, of_rejected;
    for_blocks(0, size, [&](int64_t begin, int count) {
      const double* by = load(weight, 0, begin, count, buffer);
#pragma omp simd
      for (int i = 0; i < count; i++) {  // a pair of weight 0 counts 0, even if its scores are NaN
        const double first = by[i] * static_cast<double>(a[begin + i]),
                     second = by[i] * static_cast<double>(b[begin + i]);
        of_chosen.values[i] = by[i] != 0 ? first : 0.0;
        of_rejected.values[i] = by[i] != 0 ? second : 0.0;
      }
      for (int i = 0; i < count; i++) add(begin + i, of_chosen.values[i], of_rejected.values[i]);
    });
  }
};

// The loss, and for each item its derivative (`slopes` may be missing). False where an index is out of range; the
// outputs mean nothing then.
template <typename Real, typename Integer>
bool indexed(const Comparisons& comparisons, const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs,
             Real* slopes, int threads) {
  const bool statistics = outputs.statistics;
  const int64_t items = comparisons.items, chunks = chunks_of(pairs),
                stripes = stripes_of(pairs, items,
                                     statistics ? 3
                                     : slopes   ? 1
                                                : 0);  // the same with slopes as without
  std::vector<Real> copy;
  const Real* scores = contiguous(comparisons, copy);
  std::vector<Partial> partials(static_cast<size_t>(chunks));
  const std::unique_ptr<double[]> sums(slopes ? new double[static_cast<size_t>(stripes * items)] : nullptr);
  std::vector<ItemLoss> losses(statistics ? static_cast<size_t>(stripes * items) : 0);
  const auto sums_of = [&](int64_t stripe) { return sums.get() + stripe * items; };
  const auto losses_of = [&](int64_t stripe) { return losses.data() + stripe * items; };
  std::atomic<bool> outside{false};
  for_chunks(stripes, threads, [&](int64_t stripe) {
    ChunkOfItems<Real, Integer> part{comparisons, scores, std::min(kChunk, pairs.count)};
    if (slopes) std::fill_n(sums_of(stripe), items, 0.0);  // by the thread that adds to them
    for (int64_t chunk = stripe * chunks / stripes; chunk < (stripe + 1) * chunks / stripes; chunk++) {
      if (!part.load_from(chunk * kChunk, pairs.count)) outside = true;
      if (outside) return;
      const Pairs its = part.pairs(pairs, chunk * kChunk);
      Partial& partial = partials[static_cast<size_t>(chunk)];
      partial = statistics ? part.forward_with_losses(its, outputs, losses_of(stripe))
                           : forward_chunk<Real>(its, outputs, 0, 0);
      if (slopes) part.add_slopes_of(its, sums_of(stripe));
    }
  });
  if (outside) return false;
  Partial total = Partial::zero();
  for (const Partial& partial : partials) total.add(partial);
  double linked[2] = {};
  if (statistics) {
    for (int64_t stripe = 1; stripe < stripes; stripe++) {
      for (int64_t i = 0; i < items; i++) losses_of(0)[i].add(losses_of(stripe)[i]);
    }
    set_items(losses, items, total, linked);
  }
  finish_row<Real>(total, divisor, outputs, 0);
  if (statistics) std::copy_n(linked, 2, outputs.sums + kLinked);
  if (!slopes) return true;
  const double by = divisor.total_weight ? divisor.resolve(total.weight) : divisor.of_row(0);
  for_chunks((items + kItems - 1) / kItems, threads, [&](int64_t chunk) {
    const int64_t begin = chunk * kItems, end = std::min(items, begin + kItems);
    double* first = sums_of(0);
    for (int64_t stripe = 1; stripe < stripes; stripe++) {
      const double* more = sums_of(stripe);
      for (int64_t i = begin; i < end; i++) first[i] += more[i];
    }
    for (int64_t i = begin; i < end; i++) slopes[i] = static_cast<Real>(first[i] / by);
  });
  return true;
}

template <typename Real>
bool indexed(const Comparisons& comparisons, const Pairs& pairs, const Divisor& divisor, const ForwardOutputs& outputs,
             void* slopes, int threads) {
  Real* const of_items = static_cast<Real*>(slopes);
  return comparisons.chosen.dtype == Dtype::kInt64
             ? indexed<Real, int64_t>(comparisons, pairs, divisor, outputs, of_items, threads)
             : indexed<Real, int32_t>(comparisons, pairs, divisor, outputs, of_items, threads);
}

}  // namespace

namespace PREFLOSS_CPU_PATH {

bool indexed_forward(const Comparisons& comparisons, const Pairs& pairs, const Divisor& divisor,
                     const ForwardOutputs& outputs, void* slopes, int threads) {
  return comparisons.scores.dtype == Dtype::kFloat64
             ? indexed<double>(comparisons, pairs, divisor, outputs, slopes, threads)
             : indexed<float>(comparisons, pairs, divisor, outputs, slopes, threads);
}

}  // namespace PREFLOSS_CPU_PATH
}  // namespace prefloss::cpu
