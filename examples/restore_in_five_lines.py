"""Restore a photo in five lines.

The photo is scikit-image's astronaut, made bad; put your own in its place with `cv2.imread("photo.jpg")`. Beside the whole photo,
the result holds each face: its crop, the rendering of the 3D face fitted to it, the mask, and the restored crop.
"""

import cv2

from sgpn import FaceRestorer
from sgpn_data.astronaut import degraded_astronaut

photo = degraded_astronaut()
restorer = FaceRestorer.from_pretrained(device="auto")
result = restorer.restore(photo)
cv2.imwrite("restored.png", result.image)
print(f"{len(result.faces)} face restored: restored.png")
