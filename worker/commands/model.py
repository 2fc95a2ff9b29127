"""`sailq model`: which models there are, what a bmodel holds, and which bmodels fit a box."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sailq.shared import terminal
from sailq.shared.options import Json

from .model_plan import plan

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from ..model_files.bmodel import BmodelTensor
    from ..model_files.inspection import Inspection

_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 2, 0, 0)}

model = typer.Typer(no_args_is_help=True, help="List models, show what a bmodel contains, and plan one for a box.")
model.command()(plan)


@model.command("list")
def list_models(
    folder: Annotated[Path, typer.Argument(help="Folder to look in.")] = Path("models"),
    json: Json = False,
) -> None:
    """List the models on this machine and those that can be downloaded.

    A directory with config.json can be served as it is: sailq worker --model DIR.

    \b
    Examples:
      sailq model list
      sailq model list /data/models
      sailq model list --json | jq -r '.[] | select(.path) | .name'
    """
    from dataclasses import asdict

    from ..model_files.model_list import models

    found = list(models(folder))
    if json:
        _print_json([asdict(one) for one in found])
        return
    from rich.filesize import decimal

    table = _table("model", "what it is")
    table.add_column("size", justify="right")
    for one in found:
        what = one.what if one.path else f"{one.what}; not downloaded: {one.fetch}"
        table.add_row(_printable(one.name), _printable(what), "" if one.bytes is None else decimal(one.bytes))
    terminal.console().print(table)


@model.command()
def inspect(
    bmodel: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A bmodel, or a model directory that has one.")],
    nets: Annotated[bool, typer.Option("--nets", help="Also list the nets with their inputs and outputs.")] = False,
    json: Json = False,
) -> None:
    """Show what a bmodel contains: family, layout, sizes, quantisation, memory, nets. Needs no device.

    In a model directory, config.json must match the bmodel. Loading the bmodel
    takes the device memory that is shown. A worker needs more for its own
    tensors.

    \b
    Examples:
      sailq model inspect models/BM1684X/sailq-tiny_fp16_seq128_1dev.bmodel
      sailq model inspect /data/models/qwen2-vl-7b --nets
      sailq model inspect qwen2-vl-7b_int4_seq1536_1dev.bmodel --json | jq .device_bytes
    """
    from ..model_files.inspection import inspect as look

    with _refusals(json):
        found = look(bmodel)
    if json:
        _print_json(_as_json(found))
        return
    console = terminal.console()
    console.print(_page(found))
    if nets or found.layout is None:
        console.print(_nets_table(found))


@contextmanager
def _refusals(json: bool) -> Iterator[None]:
    """With `json`, prints an error to stdout as JSON, too. The `sailq` script prints its sentence to stderr."""
    from sailq.shared.errors import SailqError

    try:
        yield
    except SailqError as error:
        if json:
            _print_json({"error": {"code": error.code, "message": str(error)}})
        raise


def _print_json(value: Any) -> None:
    print(json_module.dumps(value), flush=True)


def _table(*columns: str, **options: Any) -> Table:
    """A table that has a frame on a terminal and none when piped."""
    from rich.table import Table

    table = Table(**(options if sys.stdout.isatty() else _PLAIN))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _printable(text: str) -> str:
    """`text` with each character that UTF-8 cannot encode replaced: file names need not be Unicode."""
    return text.encode(errors="replace").decode()


def _page(found: Inspection) -> Group:
    from rich.console import Group
    from rich.filesize import decimal
    from rich.table import Table

    from ..model_files.inspection import quantisation_by_name

    bmodel, layout, memory = found.bmodel, found.layout, found.bmodel.memory
    table = Table(show_header=False, **_PLAIN)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    if layout is None:
        table.add_row("layout", _printable(f"not supported by workers: {found.problem}"))
    else:
        at = "its real length" if layout.dynamic_prompt else " or ".join(map(str, layout.prompts))
        real = ", run at the real number of patches" if layout.dynamic_vision else ""
        chosen = "the argmax token; it cannot sample" if layout.chooses else "logits"
        table.add_row("family", layout.family)
        table.add_row("layout", f"{layout.kind}, {layout.layers} layers")
        table.add_row("slots", str(layout.slots))
        table.add_row("context", f"{layout.context} tokens" + _others("a step reads", layout.caches))
        table.add_row("prompt", f"{layout.longest_prompt} tokens at most, prefilled at {at}")
        table.add_row("patches", f"{layout.patches[-1]} at most{_others('sizes', layout.patches)}{real}")
        table.add_row("gives", chosen)
    claimed = quantisation_by_name(bmodel.path)
    table.add_row(
        "quantisation", found.quantisation or (f"unknown; {claimed} according to its name" if claimed else "unknown")
    )
    table.add_row(
        "device memory",
        f"{decimal(bmodel.device_bytes)}: weights {decimal(memory.weights)}, commands {decimal(memory.commands)}, "
        f"neurons {decimal(memory.neurons)}, inputs and outputs {decimal(memory.io)}",
    )
    table.add_row("", f"{decimal(bmodel.unshared_bytes)} if each net has its own neurons")
    table.add_row("nets", str(len(bmodel.nets)))
    spread = f", over {bmodel.devices} devices" if bmodel.devices > 1 else ""
    head = f"{bmodel.path}: {decimal(found.file_bytes)} for the {bmodel.chip or 'an unknown chip'}{spread}"
    return Group(_printable(head), table)


def _others(what: str, sizes: tuple[int, ...]) -> str:
    return f"; {what} {', '.join(map(str, sizes))}" if len(sizes) > 1 else ""


def _nets_table(found: Inspection) -> Table:
    from ..model_files.bmodel import IO_ALONE
    from ..model_files.inspection import alike

    table = _table("net", "kind", "inputs", "outputs", show_lines=True)
    for name, net in alike(found.bmodel):
        kind = "dynamic" if net.dynamic else "static"
        mode = {0: "", IO_ALONE: ", own io"}.get(net.address_mode, f", address mode {net.address_mode}")
        for number, stage in enumerate(net.stages):
            label = name if len(net.stages) == 1 else f"{name}, stage {number}"
            table.add_row(label, kind + mode, _lines(stage.inputs), _lines(stage.outputs))
    return table


def _lines(tensors: tuple[BmodelTensor, ...]) -> str:
    return "\n".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)


def _as_json(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    bmodel, layout = found.bmodel, found.layout
    said: dict[str, Any] = {
        "path": str(bmodel.path), "bytes": found.file_bytes, "chip": bmodel.chip, "devices": bmodel.devices,
        "layout": None, "family": None, "problem": found.problem, "quantisation": found.quantisation,
    }
    if layout is not None:
        said |= {
            "layout": layout.kind, "family": layout.family, "layers": layout.layers, "slots": layout.slots,
            "context": layout.context, "longest_prompt": layout.longest_prompt, "prompts": layout.prompts,
            "patches": layout.patches, "caches": layout.caches, "dynamic_prompt": layout.dynamic_prompt,
            "dynamic_vision": layout.dynamic_vision, "history": layout.history, "chooses": layout.chooses,
        }
    return {
        **said,
        "device_bytes": bmodel.device_bytes,
        "unshared_bytes": bmodel.unshared_bytes,
        "memory": asdict(bmodel.memory),
        "nets": [asdict(net) for net in bmodel.nets.values()],
    }
