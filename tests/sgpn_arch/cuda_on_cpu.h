// The words of CUDA in plain C++, so that the kernels of sgpn_arch/ops/csrc compile and run without a GPU: a grid is three
// loops, a warp has one lane. Enough for kernels whose threads do not wait for each other.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__

struct Index {
  unsigned x = 0, y = 0;
};
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;

template <typename A>
A __shfl_xor_sync(unsigned, A, int) {
  return A(0);  // never asked: there is no other lane
}

// Storage types with the two conversions that the kernels use; both round to the nearest, ties to even.
struct __half {
  _Float16 value;
};
inline float __half2float(__half half) { return float(half.value); }
inline __half __float2half_rn(float value) { return {_Float16(value)}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return {0x7fc0};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <typename Call>
void launch(void (*kernel)(Call), int64_t threads, int parts, const Call& call, void*) {
  const int64_t wanted = (threads + 255) / 256;
  gridDim = {unsigned(wanted < SGPN_MAX_BLOCKS ? wanted : SGPN_MAX_BLOCKS), unsigned(parts)};
  blockDim = {256, 1};
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(call);
    }
  }
}
