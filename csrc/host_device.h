// How functions are marked that host and device code share. They are always inlined: they are compiled once per
// instruction set, and there must be no copy of them that the linker could take for another one's.
#pragma once

#if defined(__CUDACC__)
#define PREFLOSS_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define PREFLOSS_HOST_DEVICE __forceinline
#else
#define PREFLOSS_HOST_DEVICE inline __attribute__((always_inline))
#endif
