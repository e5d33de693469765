// A loop over chunks on torch's threads. Everything here has internal linkage, as all that is compiled once per
// instruction set.
#pragma once

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>
#ifdef __SANITIZE_THREAD__
#include <thread>
#endif

#include "../torch_abi.h"

namespace prefloss::cpu {
namespace {

// The chunks of one thread: the same ones in every call, so that what it has read and written lies in its own caches.
// When they are done it takes what is left of the others': chunks need not be of one size, nor threads equally fast.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;

  int64_t take() { return next < end ? next++ : end; }  // counts only where something is left: most looks find nothing
};

// Calls body(chunk) for every chunk. One thread enters no parallel region at all; within such a region this is one.
template <typename Body>
void for_chunks(int64_t chunks, int threads, const Body& body) {
  if (threads <= 1 || chunks <= 1) {
    for (int64_t chunk = 0; chunk < chunks; chunk++) body(chunk);
    return;
  }
#ifdef __SANITIZE_THREAD__
  // The sanitizer does not see how torch's threads wait for each other, so here are others. Each takes its chunks in
  // turn, so that two neighbours are never of one thread, and what the sanitizer finds is the same each time.
  std::vector<std::thread> others;
  for (int64_t first = 0; first < std::min<int64_t>(threads, chunks); first++) {
    others.emplace_back([=, &body] {
      for (int64_t chunk = first; chunk < chunks; chunk += threads) body(chunk);
    });
  }
  for (std::thread& each : others) each.join();
#else
  struct Loop {
    const Body& body;
    std::vector<Share> shares;
  } loop{body, std::vector<Share>(static_cast<size_t>(std::min<int64_t>(threads, chunks)))};
  const auto count = static_cast<int64_t>(loop.shares.size());
  for (int64_t n = 0; n < count; n++) {
    Share& share = loop.shares[static_cast<size_t>(n)];
    share.next = n * chunks / count;
    share.end = (n + 1) * chunks / count;
  }
  parallel_for(
      count, threads,
      [](int64_t own, int64_t, void* context) {
        Loop& its = *static_cast<Loop*>(context);
        const auto all = static_cast<int64_t>(its.shares.size());
        for (int64_t n = own; n < own + all; n++) {
          Share& share = its.shares[static_cast<size_t>(n % all)];
          for (int64_t chunk = share.take(); chunk < share.end; chunk = share.take()) its.body(chunk);
        }
      },
      &loop);
#endif
}

// The sum of body(begin, end) over all chunks, which begin where `begins` says, and the last of which ends at its last
// entry. Every second one runs at once, then the others: so a chunk may write to its neighbours too, where what the
// chunks on a neighbour's two sides write to does not meet.
template <typename Body>
double sum_of_chunks(const std::vector<size_t>& begins, int threads, const Body& body) {
  std::vector<double> sums(begins.size() - 1);
  for (const size_t first : {0, 1}) {
    for_chunks(static_cast<int64_t>((begins.size() - first) / 2), threads, [&](int64_t n) {
      const size_t chunk = 2 * static_cast<size_t>(n) + first;
      sums[chunk] = body(begins[chunk], begins[chunk + 1]);
    });
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace
}  // namespace prefloss::cpu
