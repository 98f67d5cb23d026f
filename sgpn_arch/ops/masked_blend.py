"""Masked blend: a mask from its logits, and two pictures blended by it, in one call."""

import torch

from sgpn_arch.ops import library


def masked_blend(logits: torch.Tensor, lq: torch.Tensor, render: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``M * lq + (1 - M) * render`` and ``M = sigmoid(logits)``.

    Args:
        logits, lq, render: tensors of one shape and type.

    Returns:
        The blend and the mask, each like ``logits``.
    """
    if library.has_pointwise_kernel(logits):
        return torch.ops.sgpn.masked_blend(logits, lq, render)
    return _plain(logits, lq, render)


def _plain(logits, lq, render):
    mask = torch.sigmoid(logits)
    return torch.lerp(render, lq, mask), mask


# ---------------------------------------------------------------------------------------------------------------------
# The same as an operator with a kernel


def _plain_backward(grad, grad_mask, lq, render, mask):
    to_mask = grad * (lq - render) if grad_mask is None else grad * (lq - render) + grad_mask
    return to_mask * mask * (1 - mask), grad * mask, grad * (1 - mask)


def _loop_backward(grad, grad_mask, lq, render, mask):
    from sgpn_arch.ops import loops

    results = tuple(torch.empty_like(mask) for _ in range(3))
    loops.run(loops.masked_blend_backward, (grad, lq, render, mask, *results))
    if grad_mask is not None:
        results[0].add_(grad_mask * mask * (1 - mask))
    return results


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:], output[1])
    # A mask that nothing uses then has the gradient None, which the kernel need not read.
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, grad_mask):
    if grad is None and grad_mask is None:
        return None, None, None
    grad = torch.zeros_like(grad_mask) if grad is None else grad
    return torch.ops.sgpn.masked_blend_backward(grad, grad_mask, *ctx.saved_tensors)


def _save_all(ctx, inputs, output):
    grad, grad_mask, lq, render, mask = inputs
    ctx.has_grad_mask = grad_mask is not None
    ctx.save_for_backward(grad, lq, render, mask, *([grad_mask] if ctx.has_grad_mask else []))


def _second_backward(ctx, second_logits, second_lq, second_render):
    grad, lq, render, mask, *grad_mask = ctx.saved_tensors
    apart, rise = lq - render, mask * (1 - mask)
    to_mask = grad * apart + grad_mask[0] if grad_mask else grad * apart
    to_lq = second_logits * rise * grad
    return (
        second_logits * rise * apart + second_lq * mask + second_render * (1 - mask),
        second_logits * rise if ctx.has_grad_mask else None,
        to_lq,
        -to_lq,
        second_logits * to_mask * (1 - 2 * mask) + (second_lq - second_render) * grad,
    )


library.declare(
    "masked_blend(Tensor logits, Tensor lq, Tensor render) -> (Tensor, Tensor)",
    plain=_plain,
    like=lambda logits, *_: (library.empty(logits), library.empty(logits)),
    setup_context=_save,
    backward=_backward,
)
library.declare(
    "masked_blend_backward(Tensor grad, Tensor? grad_mask, Tensor lq, Tensor render, Tensor mask)"
    " -> (Tensor, Tensor, Tensor)",
    plain=_plain_backward,
    like=lambda grad, grad_mask, lq, render, mask: (library.empty(mask), library.empty(mask), library.empty(mask)),
    setup_context=_save_all,
    backward=_second_backward,
    loops=_loop_backward,
)
