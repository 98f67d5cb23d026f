"""Enlarge a small face four times, and see what the shape prior adds to bicubic interpolation.

The photo is enlarged first, and its face restored then. The default weights were not trained for this one task; weights of
`options/task/sr_x4.yml` are, and are used in the same way.
"""

import cv2

from sgpn import FaceRestorer
from sgpn_data.astronaut import astronaut

truth = astronaut()
small = cv2.resize(truth, None, fx=1 / 4, fy=1 / 4, interpolation=cv2.INTER_AREA)
bicubic = cv2.resize(small, truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)

restorer = FaceRestorer.from_pretrained(device="cpu", fidelity=0.0)
(face,) = restorer.restore(bicubic, only_largest=True).faces
wanted = cv2.warpAffine(truth, face.matrix, (restorer.size, restorer.size), flags=cv2.INTER_AREA)
for name, picture in {"bicubic": face.crop, "restored": face.restored}.items():
    print(f"{name}: {cv2.PSNR(picture, wanted):.2f} dB")
cv2.imwrite("enlarged.png", cv2.hconcat([face.crop, face.restored, wanted]))
