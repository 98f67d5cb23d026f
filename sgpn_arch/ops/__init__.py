"""The small tensor operations of StyleGAN2 networks: one file per operation, each opening with its plain PyTorch definition."""

from sgpn_arch.ops.fused_leaky_relu import fused_leaky_relu
from sgpn_arch.ops.upfirdn2d import downsample2d, fir_kernel, upfirdn2d, upsample2d

__all__ = ["downsample2d", "fir_kernel", "fused_leaky_relu", "upfirdn2d", "upsample2d"]
