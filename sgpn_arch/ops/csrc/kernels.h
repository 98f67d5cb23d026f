// The GPU kernels of sgpn_arch/ops: what one thread does. Each is bound by memory, so that what counts is to touch every
// byte once, 16 at a time where that is possible (V elements of type T), and to compute in float (double for double).
#pragma once

#include "launch.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
constexpr int kLanes = 32;
#else  // a test compiles this file as plain C++, one lane per warp; it has defined the words of CUDA before
constexpr int kLanes = 1;
#endif

namespace sgpn {

template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ T narrow(Wide<T> value) {
  return value;
}
template <>
__device__ inline __half narrow<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ inline float exponential(float value) { return expf(value); }
__device__ inline double exponential(double value) { return exp(value); }

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <typename T, int V>
__device__ Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <typename T, int V>
__device__ void store(T* to, const Pack<T, V>& values) {
  *reinterpret_cast<Pack<T, V>*>(to) = values;
}

__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }

template <typename A>
__device__ A warp_sum(A value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// ---------------------------------------------------------------------------------------------- bias, leaky ReLU, concatenation

// blockIdx.y is 0 for the channels of hidden, 1 for those of fused.
template <typename T, int V, bool kChannelsLast>
__global__ void activation(Activation call) {
  using A = Wide<T>;
  const bool is_fused = blockIdx.y == 1;
  const T* source = static_cast<const T*>(is_fused ? call.fused : call.hidden);
  const int64_t stride = is_fused ? call.fused_stride : call.hidden_stride;
  const int64_t channels = is_fused ? call.fused_channels : call.hidden_channels;
  const int64_t first = is_fused ? call.hidden_channels : 0;
  const int64_t all = call.hidden_channels + call.fused_channels;
  const A* bias = static_cast<const A*>(call.bias) + first;
  const A gain = A(call.gain), slope = A(call.slope);
  const A scale = is_fused ? *static_cast<const A*>(call.weight) : A(1);
  T* out = static_cast<T*>(call.out);

  const int64_t row_length = (kChannelsLast ? channels : call.area) / V;
  const int64_t count = row_length * call.batch * (kChannelsLast ? call.area : channels);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t row = i / row_length, column = (i - row * row_length) * V;
    int64_t from, to, channel;
    if (kChannelsLast) {
      channel = column;
      from = row * stride + column;
      to = row * all + first + column;
    } else {
      const int64_t sample = row / channels;
      channel = row - sample * channels;
      from = sample * stride + channel * call.area + column;
      to = (sample * all + first + channel) * call.area + column;
    }
    const Pack<T, V> in = load<T, V>(source + from);
    Pack<T, V> result;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const A z = gain * (scale * widen(in.at[k]) + bias[kChannelsLast ? channel + k : channel]);
      result.at[k] = narrow<T>(z > 0 ? z : z * slope);
    }
    store<T, V>(out + to, result);
  }
}

// One vector of the gradient: writes the input's gradient and adds to the sums for the bias and for the weight.
template <typename T, int V>
__device__ void activation_grad_step(
    const T* grad, const T* out, const T* fused, T* grad_input, Wide<T> above, Wide<T> below, Wide<T> weight, Wide<T>* sums,
    Wide<T>& dot) {
  using A = Wide<T>;
  const Pack<T, V> g = load<T, V>(grad), y = load<T, V>(out);
  Pack<T, V> result;
  if (fused == nullptr) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const A z = widen(g.at[k]) * (widen(y.at[k]) > 0 ? above : below);
      sums[k] += z;
      result.at[k] = narrow<T>(z);
    }
  } else {
    const Pack<T, V> f = load<T, V>(fused);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const A z = widen(g.at[k]) * (widen(y.at[k]) > 0 ? above : below);
      sums[k] += z;
      dot += z * widen(f.at[k]);
      result.at[k] = narrow<T>(z * weight);
    }
  }
  store<T, V>(grad_input, result);
}

// NCHW: one warp per chunk of a plane; its lanes' sums are added at the end.
template <typename T, int V>
__global__ void activation_grad_planes(ActivationGrad call) {
  using A = Wide<T>;
  const A above = A(call.gain), below = A(call.gain) * A(call.slope);
  const int64_t all = call.hidden_channels + call.fused_channels, chunks = call.partial_sums;
  const int lane = threadIdx.x % kLanes;
  for (int64_t item = thread_index() / kLanes; item < call.batch * all * chunks; item += thread_count() / kLanes) {
    const int64_t plane = item / chunks, chunk = item - plane * chunks;
    const int64_t sample = plane / all, channel = plane - sample * all, other = channel - call.hidden_channels;
    const bool is_fused = other >= 0;
    const T* grad = static_cast<const T*>(call.grad) + plane * call.area;
    const T* out = static_cast<const T*>(call.out) + plane * call.area;
    const T* fused = nullptr;
    T* result = static_cast<T*>(call.grad_hidden) + (sample * call.hidden_channels + channel) * call.area;
    A weight = 1;
    if (is_fused) {
      fused = static_cast<const T*>(call.fused) + sample * call.fused_stride + other * call.area;
      result = static_cast<T*>(call.grad_fused) + (sample * call.fused_channels + other) * call.area;
      weight = *static_cast<const A*>(call.weight);
    }
    A sums[V] = {}, dot = 0;
    const int64_t end = (chunk + 1) * SGPN_CHUNK < call.area ? (chunk + 1) * SGPN_CHUNK : call.area;
    for (int64_t i = chunk * SGPN_CHUNK + lane * V; i < end; i += kLanes * V) {
      activation_grad_step<T, V>(
          grad + i, out + i, is_fused ? fused + i : nullptr, result + i, above, below, weight, sums, dot);
    }
    A sum = 0;
#pragma unroll
    for (int k = 0; k < V; ++k) sum += sums[k];
    sum = warp_sum(sum);
    if (lane == 0) static_cast<A*>(call.partial_bias)[item] = sum;
    if (is_fused) {
      dot = warp_sum(dot);
      const int64_t slot = (sample * call.fused_channels + other) * chunks + chunk;
      if (lane == 0) static_cast<A*>(call.partial_weight)[slot] = dot;
    }
  }
}

// NHWC: a thread keeps to its V channels and goes over every `rows`-th pixel.
template <typename T, int V>
__global__ void activation_grad_pixels(ActivationGrad call) {
  using A = Wide<T>;
  const A above = A(call.gain), below = A(call.gain) * A(call.slope);
  const int64_t all = call.hidden_channels + call.fused_channels, rows = call.partial_sums, groups = all / V;
  const int64_t pixels = call.batch * call.area;
  for (int64_t item = thread_index(); item < groups * rows; item += thread_count()) {
    const int64_t row = item / groups, channel = (item - row * groups) * V, other = channel - call.hidden_channels;
    const bool is_fused = other >= 0;
    const T* grad = static_cast<const T*>(call.grad) + channel;
    const T* out = static_cast<const T*>(call.out) + channel;
    const T* fused = is_fused ? static_cast<const T*>(call.fused) + other : nullptr;
    T* result = is_fused ? static_cast<T*>(call.grad_fused) + other : static_cast<T*>(call.grad_hidden) + channel;
    const int64_t result_stride = is_fused ? call.fused_channels : call.hidden_channels;
    const A weight = is_fused ? *static_cast<const A*>(call.weight) : A(1);
    A sums[V] = {}, dot = 0;
    for (int64_t pixel = row; pixel < pixels; pixel += rows) {
      activation_grad_step<T, V>(
          grad + pixel * all, out + pixel * all, is_fused ? fused + pixel * call.fused_stride : nullptr,
          result + pixel * result_stride, above, below, weight, sums, dot);
    }
    for (int k = 0; k < V; ++k) {
      static_cast<A*>(call.partial_bias)[row * all + channel + k] = sums[k];
      if (is_fused) static_cast<A*>(call.partial_weight)[row * call.fused_channels + other + k] = k == 0 ? dot : A(0);
    }
  }
}

// ---------------------------------------------------------------------------------------------- blend by a mask

template <typename T, int V>
__global__ void blend(Blend call) {
  using A = Wide<T>;
  for (int64_t i = thread_index() * V; i < call.count; i += thread_count() * V) {
    const Pack<T, V> logits = load<T, V>(static_cast<const T*>(call.logits) + i);
    const Pack<T, V> lq = load<T, V>(static_cast<const T*>(call.lq) + i);
    const Pack<T, V> render = load<T, V>(static_cast<const T*>(call.render) + i);
    Pack<T, V> fused, mask;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      mask.at[k] = narrow<T>(A(1) / (A(1) + exponential(-widen(logits.at[k]))));
      // As torch.lerp: from the nearer end, so that a mask of 0 or 1 gives that end exactly.
      const A m = widen(mask.at[k]), a = widen(render.at[k]), b = widen(lq.at[k]);
      fused.at[k] = narrow<T>(m < A(0.5) ? a + m * (b - a) : b - (b - a) * (A(1) - m));
    }
    store<T, V>(static_cast<T*>(call.fused) + i, fused);
    store<T, V>(static_cast<T*>(call.mask) + i, mask);
  }
}

template <typename T, int V>
__global__ void blend_grad(BlendGrad call) {
  using A = Wide<T>;
  for (int64_t i = thread_index() * V; i < call.count; i += thread_count() * V) {
    const Pack<T, V> grad = load<T, V>(static_cast<const T*>(call.grad_fused) + i);
    const Pack<T, V> lq = load<T, V>(static_cast<const T*>(call.lq) + i);
    const Pack<T, V> render = load<T, V>(static_cast<const T*>(call.render) + i);
    const Pack<T, V> mask = load<T, V>(static_cast<const T*>(call.mask) + i);
    Pack<T, V> grad_mask;
    if (call.grad_mask != nullptr) grad_mask = load<T, V>(static_cast<const T*>(call.grad_mask) + i);
    Pack<T, V> to_logits, to_lq, to_render;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const A g = widen(grad.at[k]), m = widen(mask.at[k]);
      A to_mask = g * (widen(lq.at[k]) - widen(render.at[k]));
      if (call.grad_mask != nullptr) to_mask += widen(grad_mask.at[k]);
      to_logits.at[k] = narrow<T>(to_mask * m * (A(1) - m));
      to_lq.at[k] = narrow<T>(g * m);
      to_render.at[k] = narrow<T>(g * (A(1) - m));
    }
    store<T, V>(static_cast<T*>(call.grad_logits) + i, to_logits);
    store<T, V>(static_cast<T*>(call.grad_lq) + i, to_lq);
    store<T, V>(static_cast<T*>(call.grad_render) + i, to_render);
  }
}

// ---------------------------------------------------------------------------------------------- upsample, filter, downsample

// Tap (row, column) as it meets the picture: a true convolution flips the kernel.
template <typename A>
__device__ A tap(const Filter& call, int row, int column) {
  const int last = call.taps - 1;
  return static_cast<const A*>(call.kernel)[call.correlate ? row * call.taps + column : (last - row) * call.taps + last - column];
}

// The rate changes and the size of kernel that StyleGAN2 uses, known when compiling. A thread makes kRows outputs below one
// another, of V channels each, and reads every pixel of the picture under them once. UP is 1, or DOWN is 1.
template <typename T, int V, int UP, int DOWN, int TAPS, int kRows>
__global__ void filter_tile(Filter call) {
  using A = Wide<T>;
  static_assert(UP == 1 || (DOWN == 1 && kRows % UP == 0), "tiles must begin where a pixel meets the kernel's first row");
  constexpr int kColumnTaps = (TAPS + UP - 1) / UP, kInRows = ((kRows - 1) * DOWN + TAPS - 1) / UP + 1;
  const int64_t groups = call.channels_last ? call.channels / V : 1, outer = call.channels_last ? 1 : call.channels;
  // Tiles begin `shift` rows early, so that the rows of a tile meet the same rows of the kernel in every tile.
  const int64_t shift = ((call.pad % UP) + UP) % UP, tiles = (call.out_height + shift + kRows - 1) / kRows;
  const int64_t count = call.batch * outer * tiles * call.out_width * groups;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    int64_t rest = i / groups;
    const int64_t group = i - rest * groups;
    const int64_t out_x = rest % call.out_width;
    rest /= call.out_width;
    const int64_t out_y = (rest % tiles) * kRows - shift;
    rest /= tiles;
    const int64_t sample = rest / outer, channel = rest - sample * outer + group * V;

    // Pixel (y, x) meets tap (y * UP - out_y * DOWN + pad, x * UP - out_x * DOWN + pad).
    const int64_t start_x = out_x * DOWN - call.pad, y = (out_y * DOWN - call.pad) / UP;
    const int phase = int(((-start_x) % UP + UP) % UP);
    const int64_t x = (start_x + phase) / UP;
    A weights[TAPS][kColumnTaps];
#pragma unroll
    for (int row = 0; row < TAPS; ++row) {
#pragma unroll
      for (int q = 0; q < kColumnTaps; ++q) {
        const int column = q * UP + phase;
        weights[row][q] = column < TAPS ? tap<A>(call, row, column) : A(0);
      }
    }
    const T* from = static_cast<const T*>(call.x) + sample * call.in_strides[0] + channel * call.in_strides[1];
    A sums[kRows][V] = {};
#pragma unroll
    for (int r = 0; r < kInRows; ++r) {
      if (y + r < 0 || y + r >= call.in_height) continue;
#pragma unroll
      for (int q = 0; q < kColumnTaps; ++q) {
        if (x + q < 0 || x + q >= call.in_width) continue;
        const Pack<T, V> pixel = load<T, V>(from + (y + r) * call.in_strides[2] + (x + q) * call.in_strides[3]);
#pragma unroll
        for (int o = 0; o < kRows; ++o) {
          const int row = r * UP - o * DOWN;
          if (row < 0 || row >= TAPS) continue;
#pragma unroll
          for (int k = 0; k < V; ++k) sums[o][k] += weights[row][q] * widen(pixel.at[k]);
        }
      }
    }
    T* to = static_cast<T*>(call.out) + sample * call.out_strides[0] + channel * call.out_strides[1] +
            out_x * call.out_strides[3];
#pragma unroll
    for (int o = 0; o < kRows; ++o) {
      if (out_y + o < 0 || out_y + o >= call.out_height) continue;
      Pack<T, V> result;
#pragma unroll
      for (int k = 0; k < V; ++k) result.at[k] = narrow<T>(sums[o][k]);
      store<T, V>(to + (out_y + o) * call.out_strides[2], result);
    }
  }
}

// Any rate change, any kernel: a thread makes one output.
template <typename T>
__global__ void filter_any(Filter call) {
  using A = Wide<T>;
  const int64_t groups = call.channels_last ? call.channels : 1, outer = call.channels_last ? 1 : call.channels;
  const int64_t count = call.batch * call.channels * call.out_height * call.out_width;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    int64_t rest = i / groups;
    const int64_t group = i - rest * groups;
    const int64_t out_x = rest % call.out_width;
    rest /= call.out_width;
    const int64_t out_y = rest % call.out_height;
    rest /= call.out_height;
    const int64_t sample = rest / outer, channel = rest - sample * outer + group;

    const int64_t start_y = out_y * call.down - call.pad, start_x = out_x * call.down - call.pad;
    const int first_row = int(((-start_y) % call.up + call.up) % call.up);
    const int first_column = int(((-start_x) % call.up + call.up) % call.up);
    const T* from = static_cast<const T*>(call.x) + sample * call.in_strides[0] + channel * call.in_strides[1];
    A sum = 0;
    for (int row = first_row; row < call.taps; row += call.up) {
      const int64_t y = (start_y + row) / call.up;
      if (y < 0 || y >= call.in_height) continue;
      for (int column = first_column; column < call.taps; column += call.up) {
        const int64_t x = (start_x + column) / call.up;
        if (x < 0 || x >= call.in_width) continue;
        sum += tap<A>(call, row, column) * widen(from[y * call.in_strides[2] + x * call.in_strides[3]]);
      }
    }
    static_cast<T*>(call.out)[sample * call.out_strides[0] + channel * call.out_strides[1] + out_y * call.out_strides[2] +
                              out_x * call.out_strides[3]] = narrow<T>(sum);
  }
}

}  // namespace sgpn
