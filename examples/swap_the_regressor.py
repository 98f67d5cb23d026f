"""Put another regressor in the shape prior's place.

A regressor is any module from pictures (N, 3, 224, 224) in 0..1 to the coefficients of a face. This one is a small convolutional
network that has learnt nothing, so its face is the mean face, a decimetre off; an option file would train it under
`network_shape: {type: SmallRegressor}`.
"""

import torch
from torch import nn

from sgpn import MorphableModel, ShapePrior, build_network
from sgpn_arch.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class SmallRegressor(nn.Module):
    def __init__(self, id_dim: int = 80, exp_dim: int = 52, tex_dim: int = 40, width: int = 16):
        super().__init__()
        self.coeff_dim = id_dim + exp_dim + tex_dim + 3 + 27 + 3  # and pose, lighting, place
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 7, 4, 3),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 4, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(width, self.coeff_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, image):
        return self.head(self.features(image).flatten(1))


model = MorphableModel.open()
regressors = {
    "the paper's, a ResNet": build_network({"type": "D3DFR", "exp_dim": 52, "tex_dim": 40, "backbone": "resnet18"}),
    "ours": build_network({"type": "SmallRegressor", "width": 8}),
}
crop = torch.zeros(1, 3, 256, 256)
points5 = torch.tensor(
    [[[98.0, 120], [158, 120], [128, 155], [104, 185], [152, 185]]]
)  # eyes, nose, corners of the mouth
for name, regressor in regressors.items():
    with torch.no_grad():
        shape = ShapePrior(regressor.eval(), model)(crop, points5)
    weights = sum(each.numel() for each in regressor.parameters())
    print(f"{name}: {weights:,} weights, {shape.coeffs.shape[1]} coefficients, {shape.landmarks.shape[1]} landmarks")
