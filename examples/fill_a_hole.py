"""Fill what is damaged in a photo: a scratch through an eye, and a blot on the mouth.

The shape prior fits a face to what is left of the photo. The generator sees its rendering in the hole, and draws what fits the
rest. Everything beside the hole stays as it was. docs/training.md says how to train weights of your own for it.
"""

import cv2
import numpy as np

from sgpn import FaceRestorer
from sgpn_data.astronaut import astronaut
from sgpn_data.sheet import labelled_grid, write_page_picture

photo = astronaut()
mask = np.zeros(photo.shape[:2], np.uint8)  # white is what is to be filled
cv2.line(mask, (165, 60), (228, 132), 255, 7)
cv2.ellipse(mask, (230, 146), (20, 9), -4, 0, 360, 255, -1)
damaged = photo.copy()
damaged[mask > 0] = 255

restorer = FaceRestorer.from_pretrained(device="cpu")
result = restorer.restore(damaged, mask=mask)
(face,) = result.faces
columns = {"damaged": damaged, "filled": result.image, "before the damage": photo}
shown = {name: [picture[20:240, 110:330]] for name, picture in columns.items()}
shown = {"damaged": shown.pop("damaged"), "the rendering in the holes": [face.crop], **shown}
write_page_picture("filled.jpg", labelled_grid(shown, [""]))
changed = (result.image != damaged).any(axis=2).sum()
print(f"filled.jpg: {changed} of {mask.size} pixels changed, the others stayed as they were")
