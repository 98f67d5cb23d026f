"""What the method is for: a face that is nearly lost.

Of the face little more is left than where it was. The shape prior still finds a plausible face there, and the generator joins it
with the photo's colours: a face like this one, not the person's own. The five points are given, as a person would click them. The
README shows the picture.
"""

from sgpn import FaceRestorer
from sgpn_data.astronaut import astronaut, degraded_astronaut
from sgpn_data.sheet import labelled_grid, write_page_picture

restorer = FaceRestorer.from_pretrained(device="cpu")
photo = degraded_astronaut({"blur_sigma": 3.0, "downsample": 6.0, "noise": 15.0, "jpeg": 40})
points5 = restorer.detector.detect(astronaut())[0].points5
(face,) = restorer.restore(photo, points5=points5).faces
columns = {
    "input": [face.crop],
    "3D rendering": [face.render],
    "mask (white: photo)": [face.mask],
    "restored": [face.restored],
}
write_page_picture("nearly_lost.jpg", labelled_grid(columns, [""]))
print("nearly_lost.jpg")
