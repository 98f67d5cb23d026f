// Chooses and launches the kernels: by type, by layout, and vectors of 16 bytes where sizes and addresses allow them.

#include "kernels.h"

namespace sgpn {
namespace {

constexpr int kThreads = 256;

#ifdef __CUDACC__
template <typename Call>
void launch(void (*kernel)(Call), int64_t threads, int parts, const Call& call, void* stream) {
  const int64_t blocks = std::min<int64_t>((threads + kThreads - 1) / kThreads, SGPN_MAX_BLOCKS);
  if (blocks > 0) kernel<<<dim3(unsigned(blocks), parts), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(call);
}
#endif

template <typename F>
void by_type(int32_t type, F run) {
  if (type == kHalf) run(__half{});
  if (type == kBFloat16) run(__nv_bfloat16{});
  if (type == kFloat) run(float{});
  if (type == kDouble) run(double{});
}

template <typename... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

template <typename... Counts>
bool divides(int64_t vector, Counts... counts) {
  return ((counts % vector == 0) && ...);
}

}  // namespace
}  // namespace sgpn

using namespace sgpn;

void sgpn_activation(const Activation* call, void* stream) {
  by_type(call->type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const Activation& c = *call;
    const int parts = c.fused_channels > 0 ? 2 : 1;
    const int64_t count = c.batch * c.area * std::max(c.hidden_channels, c.fused_channels);
    const bool fits = c.channels_last ? divides(V, c.hidden_channels, c.fused_channels) : divides(V, c.area);
    if (fits && divides(V, c.hidden_stride, c.fused_stride) && aligned(c.hidden, c.fused, c.out)) {
      launch(c.channels_last ? activation<T, V, true> : activation<T, V, false>, count / V, parts, c, stream);
    } else {
      launch(c.channels_last ? activation<T, 1, true> : activation<T, 1, false>, count, parts, c, stream);
    }
  });
}

void sgpn_activation_grad(const ActivationGrad* call, void* stream) {
  by_type(call->type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const ActivationGrad& c = *call;
    const int64_t channels = c.hidden_channels + c.fused_channels;
    const bool fits = c.channels_last ? divides(V, c.hidden_channels, c.fused_channels) : divides(V, c.area);
    const bool wide = fits && divides(V, c.fused_stride) &&
                      aligned(c.grad, c.out, c.fused, c.grad_hidden, c.grad_fused);
    if (c.channels_last) {
      const int64_t threads = c.partial_sums * channels;
      if (wide) launch(activation_grad_pixels<T, V>, threads / V, 1, c, stream);
      if (!wide) launch(activation_grad_pixels<T, 1>, threads, 1, c, stream);
    } else {
      const int64_t threads = c.batch * channels * c.partial_sums * kLanes;
      launch(wide ? activation_grad_planes<T, V> : activation_grad_planes<T, 1>, threads, 1, c, stream);
    }
  });
}

void sgpn_blend(const Blend* call, void* stream) {
  by_type(call->type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const Blend& c = *call;
    const bool wide = divides(V, c.count) && aligned(c.logits, c.lq, c.render, c.fused, c.mask);
    launch(wide ? blend<T, V> : blend<T, 1>, wide ? c.count / V : c.count, 1, c, stream);
  });
}

void sgpn_blend_grad(const BlendGrad* call, void* stream) {
  by_type(call->type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const BlendGrad& c = *call;
    const bool wide = divides(V, c.count) && aligned(c.grad_fused, c.grad_mask, c.lq, c.render, c.mask) &&
                      aligned(c.grad_logits, c.grad_lq, c.grad_render);
    launch(wide ? blend_grad<T, V> : blend_grad<T, 1>, wide ? c.count / V : c.count, 1, c, stream);
  });
}

namespace {

template <typename T, int V, int kRows>
bool launch_tile(const Filter& c, void* stream) {
  const int64_t threads = c.batch * (c.channels / V) * c.out_width * ((c.out_height + c.up - 1 + kRows - 1) / kRows);
  if (c.taps != 4) return false;
  if (c.up == 1 && c.down == 1) launch(filter_tile<T, V, 1, 1, 4, kRows>, threads, 1, c, stream);
  if (c.up == 2 && c.down == 1) launch(filter_tile<T, V, 2, 1, 4, kRows>, threads, 1, c, stream);
  if (c.up == 1 && c.down == 2) launch(filter_tile<T, V, 1, 2, 4, kRows>, threads, 1, c, stream);
  return c.up * c.down <= 2;
}

}  // namespace

void sgpn_filter(const Filter* call, void* stream) {
  by_type(call->type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const Filter& c = *call;
    const bool wide = c.channels_last && c.in_strides[1] == 1 && divides(V, c.channels) && aligned(c.x, c.out) &&
                      divides(V, c.in_strides[0], c.in_strides[2], c.in_strides[3]);
    const bool done = wide ? launch_tile<T, V, 4>(c, stream) : launch_tile<T, 1, 8>(c, stream);
    if (!done) launch(filter_any<T>, c.batch * c.channels * c.out_height * c.out_width, 1, c, stream);
  });
}
