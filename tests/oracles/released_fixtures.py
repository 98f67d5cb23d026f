"""Made-up files in the released layouts: state dicts of SGPN, its regressor and GPEN, and a small face model on disk."""

from pathlib import Path

import numpy as np
import scipy.io
import torch

IDENTITY, EXPRESSION, TEXTURE = 80, 64, 80
HEADS = (IDENTITY, EXPRESSION, TEXTURE, 3, 27, 2, 1)
LIGHTING, COEFFICIENTS = slice(227, 254), sum(HEADS)


# --- SGPN -------------------------------------------------------------------------------------------------------------


def channels(resolution, width=1.0, max_channels=512):
    return max(8, min(max_channels, round(32768 * width / resolution)))


def sgpn_shapes(size=512, width=1.0, max_channels=512, style=512, latent=256, coeffs=257, layers=3):
    """{name: shape} of a released SGPN of that size, by rule."""
    resolutions = [size // 2**i for i in range(size.bit_length() - 2)]  # size ... 4
    width_at = {r: channels(r, width, max_channels) for r in resolutions}
    shapes = _encoder_shapes(resolutions, width_at, latent)
    inputs = 2 * latent + coeffs
    for layer in range(1, layers + 1):
        shapes[f"netG.mlp.{layer}.weight"] = (style, inputs if layer == 1 else style)
        shapes[f"netG.mlp.{layer}.bias"] = (style,)
    top = width_at[4]
    shapes["netG.input.input"] = (1, top, 4, 4)
    shapes |= _styled_shapes("netG.conv1", top, top, style, blur=False, mask=False)
    shapes |= _rgb_shapes("netG.to_rgb1", top, style, upsample=False)
    before = top
    for scale, resolution in enumerate(resolutions[-2::-1]):
        own = width_at[resolution]
        shapes |= _styled_shapes(f"netG.convs.{2 * scale}", 2 * before, own, style, blur=True)
        shapes |= _styled_shapes(f"netG.convs.{2 * scale + 1}", 2 * own, own, style, blur=False)
        shapes |= _rgb_shapes(f"netG.to_rgbs.{scale}", own, style, upsample=True)
        before = own
    return shapes


def _encoder_shapes(resolutions, width_at, latent):
    shapes = {"netE.ecd0.0.0.weight": (width_at[resolutions[0]], 3, 1, 1)}
    shapes["netE.ecd0.0.1.bias"] = (width_at[resolutions[0]],)
    for stage, (before, after) in enumerate(zip(resolutions, resolutions[1:], strict=False), 1):
        shapes[f"netE.ecd{stage}.0.0.kernel"] = (4, 4)
        shapes[f"netE.ecd{stage}.0.1.weight"] = (width_at[after], width_at[before], 3, 3)
        shapes[f"netE.ecd{stage}.0.2.bias"] = (width_at[after],)
    shapes["netE.final_linear.0.weight"] = (latent, 16 * width_at[4])
    shapes["netE.final_linear.0.bias"] = (latent,)
    return shapes


def _styled_shapes(name, inputs, outputs, style, blur, mask=True):
    shapes = {f"{name}.conv.weight": (1, outputs, inputs, 3, 3)}
    if blur:
        shapes[f"{name}.conv.blur.kernel"] = (4, 4)
    shapes[f"{name}.conv.modulation.weight"] = (inputs, style)
    shapes[f"{name}.conv.modulation.bias"] = (inputs,)
    shapes[f"{name}.noise.weight"] = (1,)
    shapes[f"{name}.activate.bias"] = (2 * outputs,)
    if mask:
        shapes[f"{name}.convs_mask.0.weight"] = (outputs, 3 * outputs, 1, 1)
        shapes[f"{name}.convs_mask.0.bias"] = (outputs,)
    return shapes


def _rgb_shapes(name, outputs, style, upsample):
    shapes = {f"{name}.bias": (1, 3, 1, 1)}
    if upsample:
        shapes[f"{name}.upsample.kernel"] = (4, 4)
    shapes[f"{name}.conv.weight"] = (1, 3, 2 * outputs, 1, 1)
    shapes[f"{name}.conv.modulation.weight"] = (2 * outputs, style)
    shapes[f"{name}.conv.modulation.bias"] = (2 * outputs,)
    return shapes


def sgpn_state(size=64, seed=0, width=1 / 64, max_channels=24, style=16, latent=8, coeffs=10, layers=3):
    """A random released SGPN in which every tensor matters: 8 channels at 64 pixels, 16 at 32, 24 below."""
    generator = torch.Generator().manual_seed(seed)
    shapes = sgpn_shapes(size, width, max_channels, style, latent, coeffs, layers)
    return {name: _sgpn_tensor(name, shape, generator) for name, shape in shapes.items()}


def _sgpn_tensor(name, shape, generator):
    if name.endswith("kernel"):
        return blur_kernel(gain=1 if name.startswith("netE") else 4)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("noise.weight"):
        return 0.5 + 0.2 * noise
    if name.startswith("netG.mlp"):  # used times 0.01
        return 100 * noise if name.endswith("weight") else 10 * noise
    if name.endswith("modulation.bias"):
        return 1 + 0.1 * noise
    return 0.2 * noise if name.endswith("bias") else noise


def blur_kernel(line=(1.0, 3.0, 3.0, 1.0), gain=1):
    kernel = torch.outer(torch.tensor(line), torch.tensor(line))
    return kernel / kernel.sum() * gain


def gpen_state(**options):
    """The same layout under the names of a GPEN generator, which has no masks."""
    renamed = {}
    for name, tensor in sgpn_state(**options).items():
        if "convs_mask" in name:
            continue
        name = name.removeprefix("netE.").replace("netG.mlp.", "generator.style.").replace("netG.", "generator.")
        renamed[name] = tensor
    return renamed


def sgpn_inputs(batch=2, size=64, coeffs=10, seed=0):
    """lq, render (N, 3, S, S) in [-1, 1] and coefficients (N, C)."""
    generator = torch.Generator().manual_seed(seed)
    lq, render = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return lq, render, torch.randn(batch, coeffs, generator=generator)


# --- The coefficient regressor ----------------------------------------------------------------------------------------


def d3dfr_shapes():
    """{name: shape} of the released regressor, by the rules of a ResNet-50 and seven heads."""
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **_norm_shapes("backbone.bn1", 64)}
    inputs = 64
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        width = 32 * 2**layer
        for block in range(blocks):
            name = f"backbone.layer{layer}.{block}"
            shapes |= _block_shapes(name, inputs, width, project=block == 0)
            inputs = 4 * width
    for head, count in enumerate(HEADS):
        shapes[f"final_layers.{head}.weight"] = (count, inputs, 1, 1)
        shapes[f"final_layers.{head}.bias"] = (count,)
    return shapes


def _block_shapes(name, inputs, width, project):
    shapes = {}
    convolutions = {"1": (width, inputs, 1), "2": (width, width, 3), "3": (4 * width, width, 1)}
    for number, (after, before, size) in convolutions.items():
        shapes[f"{name}.conv{number}.weight"] = (after, before, size, size)
        shapes |= _norm_shapes(f"{name}.bn{number}", after)
    if project:
        shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
        shapes |= _norm_shapes(f"{name}.downsample.1", 4 * width)
    return shapes


def _norm_shapes(name, width):
    shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def d3dfr_state(seed=0):
    """A random released regressor whose activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _d3dfr_tensor(name, shape, generator) for name, shape in d3dfr_shapes().items()}


def _d3dfr_tensor(name, shape, generator):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return 0.75 + 0.5 * torch.rand(shape, generator=generator)
    if len(shape) == 4:
        gain = 0.3 if name.startswith("final_layers") else 2**0.5
        return gain * noise / (shape[1] * shape[2] * shape[3]) ** 0.5
    if name.endswith("weight"):  # of a batch norm; the last one of a block adds to the shortcut
        return (0.4 if name.endswith("bn3.weight") else 0.9) + 0.1 * noise
    return 0.1 * noise


# --- The face model ---------------------------------------------------------------------------------------------------


def _face_outline():
    """68 positions (68, 2) about where the points of a face are, in decimetres, y up, jaw from the image's left."""
    jaw = np.linspace(np.pi, 2 * np.pi, 17)
    points = [np.stack([0.72 * np.cos(jaw), 0.05 + 0.85 * np.sin(jaw)], 1)]
    points += [
        np.stack([np.linspace(a, a + 0.4, 5), 0.5 + 0.08 * np.sin(np.linspace(0, np.pi, 5))], 1) for a in (-0.52, 0.12)
    ]
    points += [np.stack([np.zeros(4), np.linspace(0.34, 0.02, 4)], 1)]
    points += [np.stack([np.linspace(-0.14, 0.14, 5), np.full(5, -0.08)], 1)]
    for middle in (-0.31, 0.31):
        x = np.array([-0.14, -0.05, 0.05, 0.14, 0.05, -0.05])
        y = np.array([0.0, 0.07, 0.07, 0.02, -0.04, -0.04])
        points.append(np.stack([middle + x, 0.29 + y], 1))
    for width, height, count in ((0.25, 0.11, 12), (0.17, 0.05, 8)):
        angle = np.pi - 2 * np.pi * np.arange(count) / count
        points.append(np.stack([width * np.cos(angle), -0.38 + height * np.sin(angle)], 1))
    return np.concatenate(points)


def bfm_arrays(vertices=400, seed=0):
    """The arrays of a face model file: a curved grid, smooth random bases, 1-based indices.

    ``vertices`` is rounded down to a square. The mean's centroid is not the origin, and its colours are 0-255.
    """
    rng = np.random.default_rng(seed)
    side = int(vertices**0.5)
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(-0.8, 0.8, side), np.linspace(-1.0, 0.95, side)))
    offset = np.array([0.06, -0.11, 0.17])
    mean = np.stack([x, y, 0.55 - 0.55 * x**2 - 0.3 * y**2 + 0.2 * np.exp(-20 * (x**2 + (y + 0.02) ** 2))], 1)
    triangles = grid_triangles(side)
    outline = _face_outline()
    keypoints = [int(((mean[:, :2] - point) ** 2).sum(1).argmin()) for point in outline]
    texture = 120 + 45 * np.sin(4 * x + 3 * y)[:, None] * [1, 0.6, -0.8] + rng.uniform(-6, 6, mean.shape)
    return {
        "meanshape": (mean + offset).reshape(1, -1).astype(np.float32),
        "meantex": texture.reshape(1, -1).astype(np.float32),
        "idBase": _waves(rng, x, y, IDENTITY, 0.008).astype(np.float32),
        "exBase": _waves(rng, x, y, EXPRESSION, 0.008).astype(np.float32),
        "texBase": _waves(rng, x, y, TEXTURE, 1.5).astype(np.float32),
        "tri": (triangles + 1).astype(np.int32),
        "point_buf": neighbouring_triangles(triangles, len(mean)).astype(np.int32),
        "keypoints": np.array(keypoints, np.int32)[None] + 1,
        "skinmask": np.ones((1, len(mean)), np.uint8),
    }


def _waves(rng, x, y, modes, amplitude):
    """(3V, modes): a smooth wave over the face for every axis and mode."""
    frequency, phase = rng.uniform(-3, 3, (2, 3, modes)), rng.uniform(0, 6.28, (3, modes))
    angle = x[:, None, None] * frequency[0] + y[:, None, None] * frequency[1] + phase
    return (amplitude * np.cos(angle) * rng.uniform(0.5, 1.5, (3, modes))).reshape(-1, modes)


def grid_triangles(side):
    """(F, 3), counter-clockwise seen from +z, for points in rows of growing y and growing x in a row."""
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1, 1)
    return np.concatenate([corner + [0, 1, side + 1], corner + [0, side + 1, side]])


def neighbouring_triangles(triangles, vertices):
    """(V, 8) 1-based triangles of every vertex, filled up with the number that follows the last one."""
    table = np.full((vertices, 8), len(triangles) + 1)
    filled = np.zeros(vertices, int)
    for number, triangle in enumerate(triangles, 1):
        for vertex in triangle:
            table[vertex, filled[vertex]] = number
            filled[vertex] += 1
    return table


def write_bfm(folder, vertices=400, seed=0, name="BFM_model_front.mat", change=None):
    """Writes the model and ``similarity_Lm3D_all.mat`` into ``folder``; ``change`` (a function) may edit the arrays.

    Returns the model's path. The 68 points of the second file are near the mean's and no multiple of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = bfm_arrays(vertices, seed)
    lm = similarity_points(arrays, seed)
    if change is not None:
        change(arrays)
    scipy.io.savemat(folder / name, arrays)
    scipy.io.savemat(folder / "similarity_Lm3D_all.mat", {"lm": lm})
    return folder / name


def similarity_points(arrays, seed=0):
    points = arrays["meanshape"].reshape(-1, 3)[arrays["keypoints"][0] - 1].astype(np.float64)
    return points - points.mean(0) + np.random.default_rng(seed + 1).normal(0, 0.02, points.shape)


def face_coefficients(batch=1, seed=0, light=0.06):
    """(N, 257) float32 of a plausible face: turned a little, lit from the side."""
    rng = np.random.default_rng(seed)
    spread = np.repeat([0.8, 0.8, 0.8, 0.2, light, 0.05, 0.1], HEADS)
    return torch.tensor(rng.normal(size=(batch, COEFFICIENTS)) * spread, dtype=torch.float32)
