// Gives PyTorch the kernels: checks tensors, finds layouts that need no copy, allocates results. The operators themselves
// (schemas, shapes, gradients) are defined in Python, in sgpn_arch/ops.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "launch.h"

#ifdef SGPN_ON_CPU  // a test builds the kernels as plain C++, to run all of this without a GPU
#define SGPN_DISPATCH_KEY CPU
struct Device {
  explicit Device(const at::Tensor&) {}
  void* stream = nullptr;
  void check() {}
};
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define SGPN_DISPATCH_KEY CUDA
// Makes a tensor's device the current one, and gives the stream that its work waits for.
struct Device {
  explicit Device(const at::Tensor& x) : guard(x.device()), stream(c10::cuda::getCurrentCUDAStream().stream()) {}
  c10::cuda::CUDAGuard guard;
  void* stream;
  void check() { C10_CUDA_KERNEL_LAUNCH_CHECK(); }
};
#endif

namespace {

using at::Tensor;

int32_t type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kHalf: return sgpn::kHalf;
    case at::kBFloat16: return sgpn::kBFloat16;
    case at::kFloat: return sgpn::kFloat;
    case at::kDouble: return sgpn::kDouble;
    default: TORCH_CHECK(false, "sgpn: tensors of type ", x.scalar_type(), " are not supported; use a floating-point type");
  }
}

at::ScalarType wide_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_like(const char* name, const Tensor& x, const Tensor& like) {
  TORCH_CHECK(
      x.device() == like.device() && x.scalar_type() == like.scalar_type(), "sgpn: ", name, " is ", x.scalar_type(), " on ",
      x.device(), "; expected ", like.scalar_type(), " on ", like.device());
}

Tensor wide(const char* name, const Tensor& x, const Tensor& like, int64_t numel) {
  TORCH_CHECK(
      x.device() == like.device() && x.scalar_type() == wide_type(like) && x.numel() == numel, "sgpn: ", name, " has ",
      x.numel(), " values of ", x.scalar_type(), " on ", x.device(), "; expected ", numel, " of ", wide_type(like), " on ",
      like.device());
  return x.contiguous();
}

// ---------------------------------------------------------------------------------------------- layouts

// Pictures with neighbouring channels are worked on as pixels (NHWC), and so are rows of features; all others as planes.
// sgpn_arch/ops/library.py repeats this rule for tensors without values.
bool is_channels_last(const Tensor& x) {
  if (x.dim() == 2) return true;
  return x.dim() == 4 && x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
}

at::MemoryFormat format_of(const Tensor& x, bool channels_last) {
  return channels_last && x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Tensor empty_like(const Tensor& x, at::IntArrayRef sizes, bool channels_last) {
  return at::empty(sizes, x.options().memory_format(format_of(x, channels_last)));
}

// The stride from sample to sample (planes) or from pixel to pixel, if all within is dense; 0 samples or pixels have any.
std::optional<int64_t> outer_stride(const Tensor& x, bool channels_last) {
  int64_t dense = 1;
  if (!channels_last) {
    for (int64_t d = x.dim() - 1; d >= 1; --d) {
      if (x.size(d) != 1 && x.stride(d) != dense) return std::nullopt;
      dense *= x.size(d);
    }
    return x.size(0) > 1 ? x.stride(0) : dense;
  }
  if (x.size(1) != 1 && x.stride(1) != 1) return std::nullopt;
  std::optional<int64_t> pixel;
  for (int64_t d = x.dim() - 1; d >= 0; --d) {
    if (d == 1 || x.size(d) == 1) continue;
    if (!pixel) pixel = x.stride(d);
    if (x.stride(d) != *pixel * dense) return std::nullopt;
    dense *= x.size(d);
  }
  return pixel.value_or(x.size(1));
}

// A tensor that the kernels can read, copied only if its strides are irregular, and the stride they need.
std::pair<Tensor, int64_t> readable(const Tensor& x, bool channels_last) {
  if (const auto stride = outer_stride(x, channels_last)) return {x, *stride};
  const Tensor copy = x.contiguous(format_of(x, channels_last));
  return {copy, outer_stride(copy, channels_last).value_or(0)};
}

Tensor dense(const Tensor& x, bool channels_last) { return x.contiguous(format_of(x, channels_last)); }

int64_t area_of(const Tensor& x) {
  int64_t area = 1;
  for (int64_t d = 2; d < x.dim(); ++d) area *= x.size(d);
  return area;
}

// ---------------------------------------------------------------------------------------------- operators

Tensor activate(const Tensor& hidden, const Tensor* fused, const Tensor* weight, const Tensor& bias, double slope, double gain) {
  TORCH_CHECK(hidden.dim() >= 2, "sgpn: activations must be (N, C, ...), they have ", hidden.dim(), " dimensions");
  const bool last = is_channels_last(hidden);
  const auto [x, x_stride] = readable(hidden, last);
  sgpn::Activation call{};
  call.type = type_of(hidden);
  call.channels_last = last;
  call.batch = hidden.size(0);
  call.area = area_of(hidden);
  call.hidden_channels = hidden.size(1);
  call.hidden = x.const_data_ptr();
  call.hidden_stride = x_stride;
  Tensor other, factor;
  auto sizes = hidden.sizes().vec();
  if (fused != nullptr) {
    check_like("fused", *fused, hidden);
    sizes[1] = fused->size(1);
    TORCH_CHECK(
        fused->sizes() == at::IntArrayRef(sizes), "sgpn: fused has shape ", fused->sizes(), ", hidden ", hidden.sizes());
    std::tie(other, call.fused_stride) = readable(*fused, last);
    factor = wide("weight", *weight, hidden, 1);
    call.fused_channels = fused->size(1);
    call.fused = other.const_data_ptr();
    call.weight = factor.const_data_ptr();
  }
  sizes[1] = call.hidden_channels + call.fused_channels;
  const Tensor offsets = wide("bias", bias, hidden, sizes[1]);
  const Tensor out = empty_like(hidden, sizes, last);
  call.bias = offsets.const_data_ptr();
  call.out = out.mutable_data_ptr();
  call.slope = slope;
  call.gain = gain;
  if (out.numel() > 0) {
    Device device(hidden);
    sgpn_activation(&call, device.stream);
    device.check();
  }
  return out;
}

struct ActivationGradients {
  Tensor hidden, fused, weight, bias;
};

ActivationGradients activate_grad(
    const Tensor& grad, const Tensor& out, const Tensor* fused, const Tensor* weight, double slope, double gain) {
  check_like("grad", grad, out);
  TORCH_CHECK(grad.sizes() == out.sizes(), "sgpn: grad has shape ", grad.sizes(), ", the output ", out.sizes());
  const bool last = is_channels_last(out);
  const Tensor y = dense(out, last), g = dense(grad, last);
  sgpn::ActivationGrad call{};
  call.type = type_of(out);
  call.channels_last = last;
  call.batch = out.size(0);
  call.area = area_of(out);
  call.grad = g.const_data_ptr();
  call.out = y.const_data_ptr();
  Tensor other, factor;
  ActivationGradients result;
  if (fused != nullptr) {
    check_like("fused", *fused, out);
    std::tie(other, call.fused_stride) = readable(*fused, last);
    factor = wide("weight", *weight, out, 1);
    call.fused_channels = fused->size(1);
    call.fused = other.const_data_ptr();
    call.weight = factor.const_data_ptr();
    result.fused = empty_like(out, fused->sizes(), last);
    call.grad_fused = result.fused.mutable_data_ptr();
  }
  auto sizes = out.sizes().vec();
  call.hidden_channels = sizes[1] -= call.fused_channels;
  result.hidden = empty_like(out, sizes, last);
  call.grad_hidden = result.hidden.mutable_data_ptr();

  const int64_t sums = sgpn::partial_sums(last, call.batch, call.area, out.size(1));
  const auto options = out.options().dtype(wide_type(out));
  const auto partial = [&](int64_t channels) {
    return last ? at::empty({sums, channels}, options) : at::empty({call.batch, channels, sums}, options);
  };
  const Tensor partial_bias = partial(out.size(1)), partial_weight = partial(call.fused_channels);
  call.partial_sums = sums;
  call.partial_bias = partial_bias.mutable_data_ptr();
  call.partial_weight = partial_weight.mutable_data_ptr();
  call.slope = slope;
  call.gain = gain;
  if (out.numel() > 0) {
    Device device(out);
    sgpn_activation_grad(&call, device.stream);
    device.check();
  }
  result.bias = last ? partial_bias.sum(0) : partial_bias.sum({0, 2});
  if (fused != nullptr) result.weight = partial_weight.sum().reshape(weight->sizes());
  return result;
}

Tensor fused_leaky_relu(const Tensor& x, const Tensor& bias, double slope, double gain) {
  return activate(x, nullptr, nullptr, bias, slope, gain);
}

std::tuple<Tensor, Tensor> fused_leaky_relu_backward(const Tensor& grad, const Tensor& out, double slope, double gain) {
  auto result = activate_grad(grad, out, nullptr, nullptr, slope, gain);
  return {result.hidden, result.bias};
}

Tensor concat_leaky_relu(
    const Tensor& hidden, const Tensor& fused, const Tensor& weight, const Tensor& bias, double slope, double gain) {
  return activate(hidden, &fused, &weight, bias, slope, gain);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> concat_leaky_relu_backward(
    const Tensor& grad, const Tensor& out, const Tensor& fused, const Tensor& weight, double slope, double gain) {
  auto result = activate_grad(grad, out, &fused, &weight, slope, gain);
  return {result.hidden, result.fused, result.weight, result.bias};
}

void check_same_shape(const char* name, const Tensor& x, const Tensor& like) {
  check_like(name, x, like);
  TORCH_CHECK(x.sizes() == like.sizes(), "sgpn: ", name, " has shape ", x.sizes(), "; expected ", like.sizes());
}

std::tuple<Tensor, Tensor> masked_blend(const Tensor& logits, const Tensor& lq, const Tensor& render) {
  check_same_shape("lq", lq, logits);
  check_same_shape("render", render, logits);
  const bool last = is_channels_last(logits);
  const Tensor a = dense(logits, last), l = dense(lq, last), r = dense(render, last);
  const Tensor fused = empty_like(logits, logits.sizes(), last), mask = empty_like(logits, logits.sizes(), last);
  const sgpn::Blend call{
      type_of(logits),       logits.numel(),           a.const_data_ptr(),     l.const_data_ptr(),
      r.const_data_ptr(),    fused.mutable_data_ptr(), mask.mutable_data_ptr()};
  if (call.count > 0) {
    Device device(logits);
    sgpn_blend(&call, device.stream);
    device.check();
  }
  return {fused, mask};
}

std::tuple<Tensor, Tensor, Tensor> masked_blend_backward(
    const Tensor& grad_fused, const std::optional<Tensor>& grad_mask, const Tensor& lq, const Tensor& render,
    const Tensor& mask) {
  const bool last = is_channels_last(mask);
  check_same_shape("grad_fused", grad_fused, mask);
  check_same_shape("lq", lq, mask);
  check_same_shape("render", render, mask);
  const Tensor g = dense(grad_fused, last), l = dense(lq, last), r = dense(render, last), m = dense(mask, last);
  Tensor h;
  if (grad_mask) {
    check_same_shape("grad_mask", *grad_mask, mask);
    h = dense(*grad_mask, last);
  }
  const auto result = [&] { return empty_like(mask, mask.sizes(), last); };
  const Tensor grad_logits = result(), grad_lq = result(), grad_render = result();
  const sgpn::BlendGrad call{
      type_of(mask),      mask.numel(),       g.const_data_ptr(),             grad_mask ? h.const_data_ptr() : nullptr,
      l.const_data_ptr(), r.const_data_ptr(), m.const_data_ptr(),             grad_logits.mutable_data_ptr(),
      grad_lq.mutable_data_ptr(),             grad_render.mutable_data_ptr()};
  if (call.count > 0) {
    Device device(mask);
    sgpn_blend_grad(&call, device.stream);
    device.check();
  }
  return {grad_logits, grad_lq, grad_render};
}

Tensor upfirdn2d(
    const Tensor& x, const Tensor& kernel, int64_t up, int64_t down, int64_t pad, int64_t height, int64_t width,
    bool correlate) {
  TORCH_CHECK(x.dim() == 4, "sgpn: upfirdn2d takes (N, C, H, W), not ", x.sizes());
  TORCH_CHECK(kernel.dim() == 2 && kernel.size(0) == kernel.size(1), "sgpn: the kernel must be square, not ", kernel.sizes());
  TORCH_CHECK(up >= 1 && down >= 1, "sgpn: up and down must be at least 1, not ", up, " and ", down);
  TORCH_CHECK(height >= 0 && width >= 0, "sgpn: upfirdn2d has no output: the kernel is larger than the padded picture");
  const bool last = is_channels_last(x);
  const Tensor taps = wide("kernel", kernel, x, kernel.numel());
  const Tensor out = empty_like(x, {x.size(0), x.size(1), height, width}, last);
  sgpn::Filter call{};
  call.type = type_of(x);
  call.channels_last = last;
  call.taps = int32_t(kernel.size(0));
  call.up = int32_t(up);
  call.down = int32_t(down);
  call.correlate = correlate;
  call.batch = x.size(0);
  call.channels = x.size(1);
  call.in_height = x.size(2);
  call.in_width = x.size(3);
  call.out_height = height;
  call.out_width = width;
  call.pad = pad;
  std::copy_n(x.strides().begin(), 4, call.in_strides);
  std::copy_n(out.strides().begin(), 4, call.out_strides);
  call.x = x.const_data_ptr();
  call.kernel = taps.const_data_ptr();
  call.out = out.mutable_data_ptr();
  if (out.numel() > 0) {
    Device device(x);
    sgpn_filter(&call, device.stream);
    device.check();
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sgpn, SGPN_DISPATCH_KEY, m) {
  m.impl("fused_leaky_relu", &fused_leaky_relu);
  m.impl("fused_leaky_relu_backward", &fused_leaky_relu_backward);
  m.impl("concat_leaky_relu", &concat_leaky_relu);
  m.impl("concat_leaky_relu_backward", &concat_leaky_relu_backward);
  m.impl("masked_blend", &masked_blend);
  m.impl("masked_blend_backward", &masked_blend_backward);
  m.impl("upfirdn2d", &upfirdn2d);
}
