// A loop over chunks on torch's threads. Everything here has internal linkage, as all that is compiled once per
// instruction set.
#pragma once

#include <atomic>

#include "../torch_abi.h"

namespace prefloss::cpu {
namespace {

// Calls body(chunk) for every chunk. One thread enters no parallel region at all; within such a region this is one.
template <typename Body>
void for_chunks(int64_t chunks, int threads, const Body& body) {
  if (threads <= 1 || chunks <= 1) {
    for (int64_t chunk = 0; chunk < chunks; chunk++) body(chunk);
    return;
  }
  // A thread takes the next chunk when it is done with one: chunks need not be of one size, nor threads equally fast.
  struct Loop {
    const Body& body;
    int64_t chunks;
    std::atomic<int64_t> next;
  } loop{body, chunks, {0}};
  parallel_for(
      chunks, threads,
      [](int64_t, int64_t, void* context) {
        Loop& its = *static_cast<Loop*>(context);
        for (int64_t chunk = its.next++; chunk < its.chunks; chunk = its.next++) its.body(chunk);
      },
      &loop);
}

}  // namespace
}  // namespace prefloss::cpu
