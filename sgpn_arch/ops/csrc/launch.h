// What the kernels are asked for: one plain struct per operation and the function that runs it. No torch, no CUDA headers,
// so that the torch binding, the kernels and a test without a GPU share these lines.
#pragma once

#include <algorithm>
#include <cstdint>

#ifndef SGPN_CHUNK  // the tests make these three small, to run the loops around them
#define SGPN_CHUNK 2048
#define SGPN_GRAD_SLOTS (1 << 19)
#define SGPN_MAX_BLOCKS 65536
#endif

namespace sgpn {

enum Type : int32_t { kHalf, kBFloat16, kFloat, kDouble };

// out = gain * leaky_relu([hidden, weight * fused] + bias), concatenated along the channels; fused_channels may be 0.
// Activations are either planes (NCHW: batch x channels rows of `area` neighbours) or pixels (NHWC: batch x area rows of
// `channels` neighbours). A stride counts elements from sample to sample (planes) or from pixel to pixel (NHWC).
// weight and bias, and everything summed, are in the wide type: double for double, float for the others.
struct Activation {
  int32_t type, channels_last;
  int64_t batch, area, hidden_channels, fused_channels, hidden_stride, fused_stride;
  const void *hidden, *fused, *weight, *bias;
  void* out;
  double slope, gain;
};

// Its gradients, of `grad` with respect to hidden, fused, and, as partial sums in the wide type, bias and weight:
// partial_bias is (batch, channels, chunks) for planes or (rows, channels) for pixels, partial_weight the same with the
// channels of fused; chunks or rows is what `partial_sums` says. `out`, of the forward pass, tells which side of zero it was.
struct ActivationGrad {
  int32_t type, channels_last;
  int64_t batch, area, hidden_channels, fused_channels, fused_stride, partial_sums;
  const void *grad, *out, *fused, *weight;
  void *grad_hidden, *grad_fused, *partial_bias, *partial_weight;
  double slope, gain;
};

inline int64_t partial_sums(bool channels_last, int64_t batch, int64_t area, int64_t channels) {
  if (!channels_last) return (area + SGPN_CHUNK - 1) / SGPN_CHUNK;
  // Enough threads to fill a GPU, and few enough that their sums are no traffic to speak of (at most 2 MiB of floats).
  const int64_t rows = std::max<int64_t>(SGPN_GRAD_SLOTS / std::max<int64_t>(channels, 1), 1);
  return std::min(rows, batch * area);
}

// mask = sigmoid(logits); fused = mask * lq + (1 - mask) * render, over `count` elements in any one order.
struct Blend {
  int32_t type;
  int64_t count;
  const void *logits, *lq, *render;
  void *fused, *mask;
};

// Its gradients; grad_mask may be null, which is a gradient of zero.
struct BlendGrad {
  int32_t type;
  int64_t count;
  const void *grad_fused, *grad_mask, *lq, *render, *mask;
  void *grad_logits, *grad_lq, *grad_render;
};

// Zero insertion, padding, convolution and decimation of every channel with one (taps, taps) kernel of the wide type:
// out[o] = sum over i of x[i] * flipped_kernel[i * up - o * down + pad], on both axes; `correlate` leaves out the flip.
// Strides, in elements, of (sample, channel, row, column).
struct Filter {
  int32_t type, channels_last, taps, up, down, correlate;
  int64_t batch, channels, in_height, in_width, out_height, out_width, pad;
  int64_t in_strides[4], out_strides[4];
  const void *x, *kernel;
  void* out;
};

}  // namespace sgpn

extern "C" {
void sgpn_activation(const sgpn::Activation* call, void* stream);
void sgpn_activation_grad(const sgpn::ActivationGrad* call, void* stream);
void sgpn_blend(const sgpn::Blend* call, void* stream);
void sgpn_blend_grad(const sgpn::BlendGrad* call, void* stream);
void sgpn_filter(const sgpn::Filter* call, void* stream);
}
