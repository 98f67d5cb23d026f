"""SGPN's forward pass for a CPU: strip by strip, so that what one step writes is still in the cache when the next one reads it.

The functions are those of encoder, mapping and decoder; only their order is another:

- All pictures are (rows, columns, channels) in memory, in buffers that stay from one face to the next: fresh memory costs
  more than arithmetic. Zero rows above and below are the convolutions' padding, so that a strip is a view.
- The style scales the activations where they are made, and demodulation, gain and the scale of equalised learning are
  multiplied into small matrices, so that the large shared kernels never change.
- The mask's 1x1 convolution over [h, F_lq, F_3d] is three matrix products that add up; nothing is concatenated: hidden and
  fused half of a layer's output are written side by side.
- ToRGB reads a strip while it is warm, and the last layer's output, which nothing else needs, is never stored.

Faces are computed one after the other: a batch gains nothing on a CPU, and memory stays that of one face.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from sgpn_arch.inference import winograd
from sgpn_arch.layers import Blur, StyledConv, ToRGB
from sgpn_arch.ops.fused_leaky_relu import GAIN, SLOPE

if TYPE_CHECKING:
    from sgpn_arch.sgpn_arch import Decoder, Encoder

# Bytes of activations that a step works on at a time: about what the caches hold. Upsampling computes two rows of its
# input twice at every seam, and so takes larger strips; in still larger ones it is no faster, and what it makes of them
# is several times their size.
STRIP_BYTES, WINOGRAD_STRIP_BYTES, UPSAMPLING_STRIP_BYTES = 4 << 20, 8 << 20, 8 << 20
# From this resolution on Winograd's filtering is quicker than the plain convolution (measured), in float32; the
# transforms of bfloat16 numbers would cost too many digits.
WINOGRAD_FROM = 32
# Up to this one it is quicker still in both directions.
TILES_UP_TO = 256
# Zero rows around the encoder's features (its blur reads two) and the decoder's (its convolutions read one).
ENCODER_BORDER, DECODER_BORDER = 2, 1


class Workspace:
    """Buffers by name, kept and reused; a name's buffer grows to the largest that was asked for."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of that shape, with whatever is in it."""
        size = torch.Size(shape).numel()
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers.pop(name, None)  # the old one goes before the new one comes
            self._buffers[name] = torch.empty(size, dtype=self.dtype)
        return self._buffers[name][:size].view(shape)

    def canvas(self, name: str, height: int, width: int, channels: int, border: int) -> Tensor:
        """(height + 2 border, width, channels), with zeros in the border rows."""
        canvas = self.take(name, height + 2 * border, width, channels)
        canvas[:border].zero_()
        canvas[-border:].zero_()
        return canvas


def strips(canvas: Tensor, border: int, about: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the rows within the border, for each strip of a canvas that is ``about`` so many bytes.

    A strip has a multiple of ``multiple`` rows, if the canvas has.
    """
    height, rows = len(canvas) - 2 * border, max(1, about // (canvas[0].nbytes * multiple)) * multiple
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def nchw(rows: Tensor) -> Tensor:
    """(rows, columns, C) -> the same memory as (1, C, rows, columns) in channels_last."""
    # In this order of steps PyTorch sees that it is channels_last.
    return rows.unsqueeze(0).permute(0, 3, 1, 2)


def flat(rows: Tensor) -> Tensor:
    """(rows, columns, C) -> the same memory as (rows * columns, C)."""
    return rows.view(-1, rows.shape[-1])


def from_nchw(x: Tensor) -> Tensor:
    """(1, C, rows, columns) in channels_last -> the same memory as (rows * columns, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def kernel(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution's weights as they are quickest to read."""
    return weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)


def output_phases(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Cout, Cin, 3, 3) of a transposed convolution with stride 2 -> plain convolutions that make a quarter of its output each.

    The outputs in even rows and columns meet the kernel's corners, 2x2; those in even columns only its middle row, 1x2; those
    in even rows only its middle column, 2x1; the others its centre.
    """
    ends = [2, 0]
    return weight[:, :, ends][..., ends], weight[:, :, 1:2][..., ends], weight[:, :, ends, 1:2], weight[:, :, 1:2, 1:2]


def depthwise(blur: Blur, channels: int, dtype: torch.dtype) -> Tensor:
    """A blur's weights (channels, 1, k, k) for a convolution with as many groups as channels."""
    taps = blur.kernel.detach().flip(0, 1)
    return taps.expand(channels, 1, *taps.shape).to(dtype).contiguous()


def leaky_relu(x: Tensor, out: Tensor) -> None:
    torch.ops.aten.leaky_relu.out(x, SLOPE, out=out)


# ---------------------------------------------------------------------------------------------------------------------
# Encoder


class StripEncoder:
    """:class:`sgpn_arch.sgpn_arch.Encoder` for one picture; its features stay in the workspace under ``name``."""

    def __init__(self, encoder: "Encoder", work: Workspace):
        self.work = work
        self.resolutions, self.patch = encoder.resolutions, encoder.patch
        stages: list[Any] = list(encoder.stages)
        first, *rest = stages
        # sqrt(2) lrelu(x + b) = lrelu(sqrt(2) x + sqrt(2) b), so that the gain costs nothing.
        self.first = (first.conv.weight * first.conv.scale * GAIN).detach()[:, :, 0, 0].t().to(work.dtype).contiguous()
        self.first_bias = (first.bias * GAIN).detach().to(work.dtype)
        self.stages = [self._stage(stage) for stage in rest]
        self.to_latent = deepcopy(encoder.to_latent)

    def _stage(self, stage) -> tuple[Tensor, Tensor, Tensor]:
        dtype, conv = self.work.dtype, stage.conv
        blur = depthwise(stage.blur, conv.weight.shape[1], dtype)
        return blur, kernel(conv.weight * conv.scale * GAIN, dtype), (stage.bias * GAIN).detach().to(dtype)

    def __call__(self, picture: Tensor, name: str) -> tuple[dict[int, Tensor], Tensor]:
        """(3, S, S) -> resolution -> canvas (r + 4, r, C), and the latent (1, latent_dim)."""
        size = self.resolutions[0]
        features = {size: self._from_rgb(picture, self._canvas(name, size, self.first.shape[1]))}
        for resolution, stage in zip(self.resolutions[1:], self.stages, strict=True):
            canvas = self._canvas(name, resolution, len(stage[1]))
            features[resolution] = self._halve(features[2 * resolution], stage, canvas)
        smallest = features[self.resolutions[-1]][ENCODER_BORDER:-ENCODER_BORDER]
        return features, self.to_latent(nchw(smallest).flatten(1))

    def _canvas(self, name: str, resolution: int, channels: int) -> Tensor:
        return self.work.canvas(f"{name}{resolution}", resolution, resolution, channels, ENCODER_BORDER)

    def _from_rgb(self, picture: Tensor, canvas: Tensor) -> Tensor:
        pixels = functional.pixel_unshuffle(picture, self.patch).permute(1, 2, 0).to(self.work.dtype).contiguous()
        inside = canvas[ENCODER_BORDER:-ENCODER_BORDER]
        for a, b in strips(canvas, ENCODER_BORDER, STRIP_BYTES):
            rows = flat(inside[a:b])
            torch.addmm(self.first_bias, flat(pixels[a:b]), self.first, out=rows)
            functional.leaky_relu_(rows, SLOPE)
        return canvas

    def _halve(self, above: Tensor, stage: tuple[Tensor, Tensor, Tensor], canvas: Tensor) -> Tensor:
        """Blur, convolution with stride 2 and activation: out row i reads rows 2i - 2 to 2i + 3 of the canvas ``above``."""
        blur, weight, bias = stage
        inside = canvas[ENCODER_BORDER:-ENCODER_BORDER]
        for a, b in strips(canvas, ENCODER_BORDER, STRIP_BYTES):
            blurred = functional.conv2d(nchw(above[2 * a : 2 * b + 4]), blur, padding=(0, 2), groups=len(blur))
            leaky_relu(from_nchw(functional.conv2d(blurred, weight, bias, stride=2)), out=flat(inside[a:b]))
        return canvas


# ---------------------------------------------------------------------------------------------------------------------
# Decoder


class StripStyledConv:
    """:class:`sgpn_arch.layers.StyledConv` for an input that its style has already scaled.

    Args:
        layer: the layer. resolution: height and width of its output.
    """

    def __init__(self, layer: StyledConv, resolution: int, work: Workspace):
        self.work = work
        conv = layer.conv
        weight = (conv.weight * conv.scale).detach()
        self.channels = len(weight)
        if conv.blur is not None:
            self.hidden_strips = self._upsampled_strips
            self.weights = [kernel(part, work.dtype) for part in output_phases(weight)]
            self.blur = depthwise(conv.blur, self.channels, work.dtype)
        elif work.dtype == torch.float32 and resolution >= WINOGRAD_FROM:
            self.hidden_strips = self._winograd_strips
            filtering = winograd.Tiles if resolution <= TILES_UP_TO else winograd.Rows
            self.winograd = filtering(weight)
        else:
            self.hidden_strips = self._plain_strips
            self.weight = kernel(weight, work.dtype)
        self.energy = weight.float().square().sum(dim=(2, 3)).t().contiguous()
        self.modulation = deepcopy(conv.modulation)
        fusion: Any = layer.fusion
        self.fuse_strip = fusion.for_strips(work)
        self.fuse_whole = deepcopy(fusion).eval() if self.fuse_strip is None else None
        self.gain = (layer.weight.detach() * GAIN).to(work.dtype)
        self.biases = (layer.bias.detach() * GAIN).to(work.dtype).chunk(2)

    def style(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """w (1, style_dim) -> factors on the input's channels and on the output's."""
        style = self.modulation(w)
        return style[0].to(self.work.dtype), torch.rsqrt(style.square() @ self.energy + 1e-8)[0].to(self.work.dtype)

    # Each of these gives the convolution of the canvas x (H + 2, W, Cin) strip by strip: rows from, to, and what they are,
    # (P, C), not yet demodulated. `hidden_strips` is the one that fits the layer.

    def _plain_strips(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        for a, b in strips(x, DECODER_BORDER, max(STRIP_BYTES, self.weight.nbytes)):
            yield a, b, from_nchw(functional.conv2d(nchw(x[a : b + 2]), self.weight, padding=(0, 1)))

    def _winograd_strips(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        for a, b in strips(x, DECODER_BORDER, WINOGRAD_STRIP_BYTES, multiple=winograd.TILE):
            hidden = self.work.take("hidden", b - a, x.shape[1], self.channels)
            self.winograd(x[a : b + 2], self.work.take, hidden)
            yield a, b, flat(hidden)

    def _upsampled_strips(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        for a, b in strips(x, DECODER_BORDER, UPSAMPLING_STRIP_BYTES):
            double = self._double(x[a : b + 2])
            blurred = functional.conv2d(nchw(double), self.blur, padding=(0, 1), groups=self.channels)
            yield 2 * a, 2 * b, from_nchw(blurred)

    def _double(self, x: Tensor) -> Tensor:
        """The transposed convolution: from rows a - 1 to b of a picture to rows 2a - 1 to 2b + 1 of the doubled one."""
        rows, columns = len(x), x.shape[1]
        double = self.work.take("double", 2 * rows - 1, 2 * columns + 1, self.channels)
        both, side, above, one = self.weights
        double[::2, 1::2] = self._phase(x, one)
        double[::2, ::2] = self._phase(x, side)
        double[1::2, 1::2] = self._phase(x, above)
        double[1::2, ::2] = self._phase(x, both)
        return double

    @staticmethod
    def _phase(x: Tensor, weight: Tensor) -> Tensor:
        found = functional.conv2d(nchw(x), weight, padding=(0, weight.shape[3] - 1))
        return found[0].permute(1, 2, 0)

    def activate(self, hidden: Tensor, demodulation: Tensor, fused: Tensor, out: Tensor) -> None:
        """out (P, 2 C) = fused_leaky_relu([demodulated hidden, weight * F])."""
        torch.addcmul(self.biases[0], hidden, demodulation * GAIN, out=out[:, : self.channels])
        torch.addcmul(self.biases[1], fused, self.gain, out=out[:, self.channels :])
        functional.leaky_relu_(out, SLOPE)


class StripToRGB:
    """:class:`sgpn_arch.layers.ToRGB`, without the picture of the scale before."""

    def __init__(self, layer: ToRGB, work: Workspace):
        self.work = work
        self.weight = (layer.conv.weight * layer.conv.scale).detach()[:, :, 0, 0].t().float()
        self.modulation = deepcopy(layer.conv.modulation)
        self.bias = layer.bias.detach().flatten().float().clone()
        self.upsample, self.patch = deepcopy(layer.upsample), layer.patch

    def matrix(self, w: Tensor) -> Tensor:
        """(2 C, 3 patch²): from a place's activations to the colours of its pixels."""
        return (self.modulation(w)[0].float()[:, None] * self.weight).to(self.work.dtype)

    def add(self, colours: Tensor, picture: Tensor | None) -> Tensor:
        """The colours (r, r, 3 patch²) and the upsampled picture of the scale before -> (1, 3, patch r, patch r)."""
        picture_here = functional.pixel_shuffle(nchw(colours.add_(self.bias)), self.patch)
        return picture_here if picture is None or self.upsample is None else picture_here.add_(self.upsample(picture))


class StripDecoder:
    """:class:`sgpn_arch.sgpn_arch.Decoder` for one face."""

    def __init__(self, decoder: "Decoder", work: Workspace):
        self.work = work
        self.input = decoder.input.input.detach()[0].permute(1, 2, 0).to(work.dtype, copy=True)
        self.resolutions = decoder.resolutions
        layers: list[Any] = [decoder.first_conv, *decoder.convs]
        to_rgbs: list[Any] = [decoder.first_to_rgb, *decoder.to_rgbs]
        self.convs = [StripStyledConv(layer, self._resolution(i), work) for i, layer in enumerate(layers)]
        self.to_rgbs = [StripToRGB(layer, work) for layer in to_rgbs]

    def _resolution(self, layer: int) -> int:
        """Of a styled convolution's output: one at the coarsest scale, two at each further one."""
        return self.resolutions[(layer + 1) // 2]

    def __call__(self, w: Tensor, lq: dict[int, Tensor], render: dict[int, Tensor] | None, masks: "Masks") -> Tensor:
        """w (1, style_dim) and canvases of features -> the picture (1, 3, S, S), float32; ``masks`` gets the masks."""
        styles = [conv.style(w) for conv in self.convs]
        start = self.work.canvas("even", 4, 4, self.input.shape[-1], DECODER_BORDER)
        torch.mul(self.input, styles[0][0], out=start[DECODER_BORDER:-DECODER_BORDER])
        x: Tensor | None = start
        picture = None
        for i, conv in enumerate(self.convs):
            size = self._resolution(i)
            features = lq[size], None if render is None else render[size]
            source = self._fused_strips(conv, x, styles[i][1], features, masks)
            # Layers read one buffer and write the other; nobody reads what the last one writes.
            name = "odd" if i % 2 == 0 else "even"
            last = i + 1 == len(self.convs)
            x = None if last else self.work.canvas(name, size, size, 2 * conv.channels, DECODER_BORDER)
            to_rgb = self.to_rgbs[i // 2] if i % 2 == 0 else None
            colours = torch.empty(size, size, len(to_rgb.bias)) if to_rgb else None
            self._write(conv, source, x, None if last else styles[i + 1][0], to_rgb and to_rgb.matrix(w), colours)
            if to_rgb and colours is not None:
                picture = to_rgb.add(colours, picture)
        assert picture is not None  # the first layer has a to_rgb
        return picture

    def _fused_strips(self, conv, x, demodulation, features, masks: "Masks"):
        """For each strip of a layer: rows from, to, hidden (P, C), what demodulates it (C,), and F (P, C)."""
        inside = slice(ENCODER_BORDER, -ENCODER_BORDER)
        lq, render = features[0][inside], None if features[1] is None else features[1][inside]
        if conv.fuse_strip is None:
            yield self._fused_whole(conv, x, demodulation, lq, render, masks)
            return
        for a, b, hidden in conv.hidden_strips(x):
            rows = flat(lq[a:b]), None if render is None else flat(render[a:b])
            fused, mask = conv.fuse_strip(hidden, demodulation, *rows)
            if mask is not None:
                masks.add(mask.view(b - a, -1, conv.channels), a, len(lq))
            yield a, b, hidden, demodulation, fused

    def _fused_whole(self, conv, x, demodulation, lq, render, masks: "Masks"):
        """The same for a fusion without a form for strips: it sees the whole maps."""
        whole = self.work.take("whole", *lq.shape)
        for a, b, hidden in conv.hidden_strips(x):
            torch.mul(hidden, demodulation, out=flat(whole[a:b]))
        maps = (nchw(whole), nchw(lq), None if render is None else nchw(render))
        with torch.autocast("cpu", self.work.dtype, enabled=self.work.dtype != torch.float32):
            fused, mask = conv.fuse_whole(*maps)
        if mask is not None:
            masks.add(mask[0].permute(1, 2, 0), 0, len(lq))
        return 0, len(lq), flat(whole), torch.ones_like(demodulation), from_nchw(fused.to(self.work.dtype))

    def _write(self, conv, source, out, next_style, matrix, colours) -> None:
        """Activates a layer's strips and hands them on: as colours, and scaled for the next layer."""
        for a, b, hidden, demodulation, fused in source:
            shape = len(hidden), 2 * conv.channels
            rows = self.work.take("strip", *shape) if out is None else flat(out[DECODER_BORDER:-DECODER_BORDER][a:b])
            conv.activate(hidden, demodulation, fused, rows)
            if matrix is not None:
                flat(colours[a:b]).copy_(rows @ matrix)
            if next_style is not None:
                rows.mul_(next_style)


class Masks:
    """Collects the fusion's masks, strip by strip.

    Args:
        wanted: "none", "all" of them, or of the finest scale's last the "picture", the mean of its channels.
        finest: that scale's resolution.
    """

    def __init__(self, wanted: str, finest: int):
        self.wanted = wanted
        self.finest = finest
        self.all: dict[int, list[Tensor]] = {}

    def add(self, mask: Tensor, start: int, size: int) -> None:
        """Takes the rows of a mask (rows, size, C), from ``start`` on; the strips of a layer come in order."""
        if self.wanted == "none" or (self.wanted == "picture" and size != self.finest):
            return
        if self.wanted == "picture":  # in pieces, for PyTorch makes a float32 copy of what it takes the mean of
            mask = torch.cat([rows.mean(dim=2, keepdim=True, dtype=torch.float32) for rows in mask.split(16)])
        maps = self.all.setdefault(size, [])
        if start == 0:
            maps.append(mask.new_empty(size, *mask.shape[1:]))
        maps[-1][start : start + len(mask)] = mask

    def at(self, resolution: int) -> list[Tensor]:
        """The masks (1, C, r, r) of a scale."""
        return [nchw(mask) for mask in self.all.get(resolution, [])]
