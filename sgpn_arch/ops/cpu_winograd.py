"""A 3x3 convolution of rows of a picture by Winograd's minimal filtering F(4, 3), for float32 on the CPU.

Along a row, four neighbouring outputs of a filter with three taps need six products instead of twelve (Winograd 1980; for
convolutional networks Lavin and Gray 2016). With d the six inputs, g the taps and matrices B, G and A of small constants,
``y = A^T [(G g) * (B^T d)]``. Over channels the products become matrix products, and the three rows of the kernel add up,
so that a strip is 18 matrix products of half the arithmetic in all. Down the columns nothing is transformed, which keeps
rounding errors near the plain convolution's.
"""

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


def transform_kernel(weight: Tensor) -> Tensor:
    """(Cout, Cin, 3, 3) -> (6, 3, Cin, Cout), of which the second index is the kernel's row."""
    transform = torch.tensor(KERNEL_TRANSFORM, dtype=torch.float64)
    return torch.einsum("kx,oiyx->kyio", transform, weight.double()).to(weight.dtype).contiguous()


def transform_rows(x: Tensor, out: Tensor) -> None:
    """B^T: (rows, W, C) -> out (6, rows, W / 4, C). Beyond both ends of a row are zeros; W is a multiple of 4."""
    a, b, c, d = x.view(len(x), -1, TILE, x.shape[-1]).unbind(
        2
    )  # the inner four inputs of a tile; the outer are neighbours'
    even, odd = torch.add(d, b, alpha=-4), torch.add(c, a, alpha=-4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d, b, out=even)
    torch.sub(c, a, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(d, b, alpha=-5, out=out[0])
    out[0][:, 1:].add_(d[:, :-1], alpha=4)
    torch.mul(a, 4, out=out[5]).add_(c, alpha=-5)
    out[5][:, :-1].add_(a[:, 1:])


def inverse_transform(products: Tensor, out: Tensor) -> None:
    """A^T: products (6, rows, W / 4, C), which are overwritten, -> out (rows, W, C)."""
    first, one, two, three, four, last = products
    a, b, c, d = out.view(len(out), -1, TILE, out.shape[-1]).unbind(2)
    sum_12, sum_34 = torch.add(one, two), torch.add(three, four)
    difference_12, difference_34 = one.sub_(two), three.sub_(four)
    torch.add(first.add_(sum_12), sum_34, out=a)
    torch.add(difference_12, difference_34, alpha=2, out=b)
    torch.add(sum_12, sum_34, alpha=4, out=c)
    torch.add(last.add_(difference_12), difference_34, alpha=8, out=d)


def convolve_rows(x: Tensor, kernel: Tensor, spaces: tuple[Tensor, Tensor], out: Tensor) -> None:
    """Convolves a strip with a 3x3 kernel.

    Args:
        x: (rows + 2, W, Cin) contiguous, the rows above and below included.
        kernel: (6, 3, Cin, Cout), from :func:`transform_kernel`.
        spaces: (6, rows + 2, W / 4, Cin) and (6, rows, W / 4, Cout) to work in.
        out: (rows, W, Cout).
    """
    rows, products = spaces
    transform_rows(x, rows)
    count = len(x) - 2
    for k in range(len(kernel)):
        product = products[k].view(-1, products.shape[-1])
        torch.mm(rows[k, :count].view(-1, x.shape[-1]), kernel[k, 0], out=product)
        for y in (1, 2):
            product.addmm_(rows[k, y : y + count].view(-1, x.shape[-1]), kernel[k, y])
    inverse_transform(products, out)
