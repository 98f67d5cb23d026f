"""3x3 convolutions of a strip of a picture by Winograd's minimal filtering F(4, 3), for float32 on the CPU.

Four neighbouring outputs of a filter with three taps need six products instead of twelve (Winograd 1980; for
convolutional networks Lavin and Gray 2016). With d the six inputs, g the taps and matrices B, G and A of small constants,
``y = A^T [(G g) * (B^T d)]``. Over channels the products become matrix products. Along the rows alone (:class:`Rows`) a strip
takes 18 of them and half the arithmetic, along rows and columns (:class:`Tiles`) 36 and a quarter; the transforms are passes
over memory, so that the second pays only where channels are many and pixels few.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TILE = 4
# G: what the taps become.
KERNEL_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)

#: (name, *shape) -> a tensor to work in, with whatever is in it.
Take = Callable[..., Tensor]


class Rows:
    """Transforms along the rows; down the columns the kernel's three rows add up.

    Args:
        weight: (Cout, Cin, 3, 3).
    """

    def __init__(self, weight: Tensor):
        taps = torch.tensor(KERNEL_TRANSFORM, dtype=torch.float64)
        self.kernel = torch.einsum("kx,oiyx->kyio", taps, weight.double()).to(weight.dtype).contiguous()

    def __call__(self, x: Tensor, take: Take, out: Tensor) -> None:
        """Convolves a strip.

        Args:
            x: (H + 2, W, Cin) contiguous, the rows above and below included; beyond the ends of a row are zeros. W is a
                multiple of 4.
            take: gives memory to work in.
            out: (H, W, Cout) contiguous.
        """
        height, tiles = len(x) - 2, x.shape[1] // TILE
        inputs = take("winograd_inputs", 6, len(x), tiles, x.shape[2])
        products = take("winograd_products", 6, height, tiles, out.shape[2])
        split_rows(x, take, inputs)
        for k, kernel in enumerate(self.kernel):
            product = _flat(products[k])
            torch.mm(_flat(inputs[k, :height]), kernel[0], out=product)
            for y in (1, 2):
                product.addmm_(_flat(inputs[k, y : y + height]), kernel[y])
        join(products, _parts(out))


class Tiles:
    """Transforms tiles of 4x4 outputs. As :class:`Rows`, but H is a multiple of 4 too."""

    def __init__(self, weight: Tensor):
        taps = torch.tensor(KERNEL_TRANSFORM, dtype=torch.float64)
        self.kernel = torch.einsum("kx,ly,oiyx->klio", taps, taps, weight.double()).to(weight.dtype).contiguous()

    def __call__(self, x: Tensor, take: Take, out: Tensor) -> None:
        """Convolves a strip, as :meth:`Rows.__call__`."""
        height, tiles = len(x) - 2, x.shape[1] // TILE
        columns = take("winograd_columns", 6, len(x), tiles, x.shape[2])
        inputs = take("winograd_inputs", 6, height // TILE, tiles, x.shape[2])
        products = take("winograd_products", 6, height // TILE, tiles, out.shape[2])
        rows = take("winograd_rows", 6, height, tiles, out.shape[2])
        split_rows(x, take, columns)
        for k, kernels in enumerate(self.kernel):
            split([columns[k, y : y + height : TILE] for y in range(6)], inputs)
            for y, kernel in enumerate(kernels):
                torch.mm(_flat(inputs[y]), kernel, out=_flat(products[y]))
            join(products, [rows[k, y::TILE] for y in range(TILE)])
        join(rows, _parts(out))


def split(d: Sequence[Tensor], out: Tensor) -> None:
    """B^T: six tensors of one shape -> ``out`` (6, *shape)."""
    torch.add(d[4], d[2], alpha=-5, out=out[0]).add_(d[0], alpha=4)
    torch.add(d[5], d[3], alpha=-5, out=out[5]).add_(d[1], alpha=4)
    even, odd = torch.add(d[4], d[2], alpha=-4), torch.add(d[3], d[1], alpha=-4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])


def split_rows(x: Tensor, take: Take, out: Tensor) -> None:
    """B^T along rows (rows, W, C) -> out (6, rows, W / 4, C)."""
    inner = _parts(x)
    before = take("winograd_before", *inner[0].shape)
    after = take("winograd_after", *inner[0].shape)
    before[:, 0], after[:, -1] = 0, 0
    before[:, 1:], after[:, :-1] = inner[3][:, :-1], inner[0][:, 1:]
    split([before, *inner, after], out)


def join(products: Tensor, out: Sequence[Tensor]) -> None:
    """A^T: products (6, *shape), which are overwritten, -> four tensors of that shape."""
    first, one, two, three, four, last = products
    sum_12, sum_34 = torch.add(one, two), torch.add(three, four)
    difference_12, difference_34 = one.sub_(two), three.sub_(four)
    torch.add(first.add_(sum_12), sum_34, out=out[0])
    torch.add(difference_12, difference_34, alpha=2, out=out[1])
    torch.add(sum_12, sum_34, alpha=4, out=out[2])
    torch.add(last.add_(difference_12), difference_34, alpha=8, out=out[3])


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """(H, W, C) -> every fourth column of it, from the first, second, third and fourth on: (H, W / 4, C) each."""
    return x.view(len(x), -1, TILE, x.shape[2]).unbind(2)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
