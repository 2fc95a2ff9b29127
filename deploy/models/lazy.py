"""Parameters without data, which are computed from those of a checkpoint when they are written."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def whole(source: Tensor) -> Tensor:
    return source


class Lazy(nn.Parameter):
    """A parameter on the `meta` device. `derive` computes its data from those of `source` when they are written.

    `source` is a parameter of a checkpoint's model, or a tensor with data. Small results may be computed;
    large ones should be views.
    """

    source: Tensor
    derive: Callable[[Tensor], Tensor]

    def __new__(cls, source: Tensor, derive: Callable[[Tensor], Tensor] = whole) -> Lazy:
        parameter: Lazy = super().__new__(cls, derive(source.detach().to("meta")), requires_grad=False)
        parameter.source, parameter.derive = source, derive
        return parameter
