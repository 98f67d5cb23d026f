"""Use the shape prior alone: fit a 3D face to a photo, turn it, and write it as GLB.

No generator is involved: the regressor finds the coefficients, and the morphable model, the light, the camera and the rasteriser
draw the face. Whatever of it you change, here the head's angle, is drawn anew. `face.glb` opens in Blender or any viewer of glTF.
"""

import math

import cv2
import numpy as np
import torch

from sgpn_arch.face3d.face_mesh import FaceMesh, write_mesh
from sgpn_data.alignment import align_face, transform_points
from sgpn_data.astronaut import astronaut
from sgpn_data.detection import build_detector
from sgpn_data.tensors import to_images, to_tensor
from sgpn_model.weights.pretrained import load_networks

_, prior, template = load_networks("default")
photo = astronaut()
points5 = build_detector().detect(photo)[0].points5
crop, matrix = align_face(photo, points5, 256, template)
points5 = torch.from_numpy(transform_points(points5, matrix)).float()[None]

views = [crop]
with torch.no_grad():
    shape = prior(to_tensor(crop)[None], points5)
    identity, expression, texture, angles, lighting, translation = prior.split(shape.coeffs)
    for degrees in (-40, -20, 0, 20, 40):
        turned = angles + torch.tensor([[0.0, math.radians(degrees), 0.0]])
        coeffs = torch.cat([identity, expression, texture, turned, lighting, translation], dim=1)
        views += to_images(prior.draw(coeffs, shape.transform, 256).render)
cv2.imwrite("turned.png", np.hstack(views))

mesh = shape.mesh
write_mesh("face.glb", FaceMesh(mesh.vertices[0].numpy(), mesh.colors[0].numpy(), prior.model.triangles.numpy()))
print("turned.png, face.glb")
