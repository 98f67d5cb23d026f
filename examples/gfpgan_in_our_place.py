"""Build GFPGAN's network through the registry, where SGPN stands.

GFPGAN registers its networks in BasicSR's registry, which is ours: `pip install --no-deps gfpgan` and an import are all.
`PhotoOnly` calls it with the photo alone. It then trains with all losses and restores like SGPN; here it has random weights.
Theirs load with
`network.network.load_state_dict(torch.load("GFPGANv1.4.pth")["params_ema"])`.
"""

import torch

from sgpn import build_network
from sgpn_arch.registry import load_basicsr

load_basicsr()
import gfpgan.archs.gfpganv1_clean_arch  # noqa: E402, F401  (registers GFPGANv1Clean)

network = build_network(
    {
        "type": "PhotoOnly",
        "size": 64,
        "network": {"type": "GFPGANv1Clean", "out_size": 64, "num_style_feat": 64, "narrow": 0.125, "sft_half": True},
        "call": {"return_rgb": False, "randomize_noise": False},
    }
)
photo = torch.rand(1, 3, 64, 64) * 2 - 1
with torch.no_grad():
    picture = network(photo, None, None)
print(f"{type(network.network).__name__}: {tuple(picture.shape)}")
