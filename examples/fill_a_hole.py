"""Train for inpainting, and fill a hole in a photo.

Holes need weights that were trained to fill them: the option file says so, and the checkpoint remembers. Three steps at 64 px are
enough to see the way, and far too few for a face; `sgpn train options/task/inpaint.yml` is the real training.
"""

from pathlib import Path

import cv2
import numpy as np

from sgpn import FaceRestorer
from sgpn_data.astronaut import astronaut
from sgpn_model import cli

Path("fill.yml").write_text("""
_base_: options/example/joint.yml
name: fill
path: {pretrain_prior: ~, pretrain_network_shape: default}
datasets:
  train: {degradation: ~, inpaint: {area: [0.05, 0.35]}}
  val: {degradation: ~, inpaint: {area: [0.05, 0.35]}}
train: {total_iter: 3}
""")
cli.main(["align", "--demo", "-o", "demo"])
cli.main(["train", "fill.yml", "--data", "demo", "--device", "cpu"])

photo = astronaut()
mask = np.zeros(photo.shape[:2], np.uint8)
cv2.circle(mask, (224, 150), 12, 255, -1)  # white is what is to be filled
restorer = FaceRestorer.from_pretrained("experiments/fill/models/fill_3.safetensors", device="cpu")
filled = restorer.restore(photo, mask=mask).image
cv2.imwrite("filled.png", filled)
changed = (filled != photo).any(axis=2).sum()
print(f"filled.png: {changed} of {mask.size} pixels changed, the others stayed as they were")
