"""Describes a bmodel for people, from the file alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

from sailq.shared.errors import Unsupported

from ..engine.model import ModelSpec
from ..runners.devices import only_bmodel
from ..runners.layout import Layout
from ..runners.layout_checks import read_layout
from .bmodel import Bmodel, BmodelNet, read_bmodel

_BITS = (4, 8, 16, 32)
_BY_NAME = re.compile(r"(?<![a-z0-9])(w[48]b?f16|int[48]|bf16|f16|f32)(?![a-z0-9])")


@dataclass(frozen=True)
class Inspection:
    """A bmodel, and whether a worker can run it.

    Attributes:
        layout: None if the worker cannot run it; `problem` then says why.
        quantisation: of the decoder's layers; None if the file does not show it.
    """

    bmodel: Bmodel
    file_bytes: int
    layout: Layout | None
    problem: str | None
    quantisation: str | None


def inspect(path: Path) -> Inspection:
    """Inspect a bmodel, or the one in a model directory. The directory's config.json must fit it.

    Raises:
        Unsupported: the file is not a complete bmodel, or the directory does not contain exactly one.
    """
    file = only_bmodel(path) if path.is_dir() else path
    bmodel = read_bmodel(file)
    layout, problem = None, None
    try:
        layout = read_layout(bmodel, ModelSpec.load(path) if path.is_dir() else None)
    except Unsupported as error:
        problem = str(error)
    return Inspection(bmodel, file.stat().st_size, layout, problem, quantisation(bmodel))


def quantisation(bmodel: Bmodel) -> str | None:
    """`w4f16`, `bf16`, ... from the decoder's first layer.

    The smallest matrix of a layer is that of k or v: hidden size × size of a cache row. Its bytes give the bits of a
    weight. Weights with fewer bits than their inputs get TPU-MLIR's names, such as `w4f16`. None: the bmodel has no
    such layer, or its weights have no names.
    """
    net = bmodel.nets.get("block_cache_0")
    if net is None or len(net.stages[0].inputs) < 4 or not all(t.shape for t in net.stages[0].inputs):
        return None
    hidden, row = net.stages[0].inputs[0], net.stages[0].inputs[3]
    matrices = [weight for weight in bmodel.weights.get(net.name, ()) if weight.name.endswith("MatMul.weight")]
    size = hidden.shape[-1] * prod(row.shape[-2:])
    if not matrices or not size:
        return None
    bits = 8 * min(weight.bytes for weight in matrices) // size
    if bits not in _BITS:
        return None
    if any("A16MatMul" in weight.name for weight in matrices):
        return f"w{bits}{hidden.dtype}" if hidden.dtype in ("f16", "bf16") else f"w{bits}"
    return {16: hidden.dtype if hidden.dtype == "bf16" else "f16", 32: "f32"}.get(bits, f"int{bits}")


def quantisation_by_name(path: Path) -> str | None:
    """The quantisation that the file's name states, if any."""
    found = _BY_NAME.search(path.name.lower().replace("_", " "))
    return found[1] if found else None


def alike(bmodel: Bmodel) -> Iterator[tuple[str, BmodelNet]]:
    """The nets with their names. Adjacent nets that differ only in their number are one entry: `block_0 to
    block_27`."""

    def kind(net: BmodelNet) -> tuple[object, ...]:
        return re.sub(r"_\d+$", "", net.name), net.stages, net.dynamic, net.address_mode

    for _, group in groupby(bmodel.nets.values(), kind):
        nets = list(group)
        yield nets[0].name if len(nets) == 1 else f"{nets[0].name} to {nets[-1].name}", nets[0]
