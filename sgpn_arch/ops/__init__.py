"""The small tensor operations of StyleGAN2 networks: one file per operation, each opening with its plain PyTorch definition.

On a GPU they are operators ``torch.ops.sgpn.*`` with kernels of our own; :mod:`sgpn_arch.ops.library` says when and how.
"""

from sgpn_arch.ops.convolution import convolution
from sgpn_arch.ops.fused_leaky_relu import concat_leaky_relu, fused_leaky_relu
from sgpn_arch.ops.library import plain_operations
from sgpn_arch.ops.masked_blend import masked_blend
from sgpn_arch.ops.upfirdn2d import downsample2d, fir_kernel, upfirdn2d, upsample2d

__all__ = [
    "concat_leaky_relu",
    "convolution",
    "downsample2d",
    "fir_kernel",
    "fused_leaky_relu",
    "masked_blend",
    "plain_operations",
    "upfirdn2d",
    "upsample2d",
]
