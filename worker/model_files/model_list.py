"""Lists models: the packaged one, those in a folder, and those that can be downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sailq.shared.errors import Unsupported

from ..engine.model import ModelSpec
from .inspection import Inspection, inspect, quantisation_by_name
from .model_paths import NAMES, resolve
from .published import PUBLISHED

_DEPTH = 3  # folders: models/BM1684X/NAME


@dataclass(frozen=True)
class Model:
    """One model or bmodel.

    Attributes:
        name: the value for `--model` if the model can be served; else the file's path.
        what: a description in words.
        bytes: size of all its files, or of the bmodel; None if unknown.
        path: None if the model is not on this machine.
        fetch: the command that downloads it, if it is not on this machine.
    """

    name: str
    what: str
    bytes: int | None
    path: str | None
    fetch: str | None = None


def models(folder: Path) -> Iterator[Model]:
    """The models on this machine, those in `folder` included, then those that can be downloaded into `folder`."""
    for name in NAMES:
        directory = resolve(name)
        yield Model(name, "packaged, for CPUs", _bytes(directory), str(directory))
    yield from _in_folder(folder)
    for published in PUBLISHED:
        if not any((folder / published.name).glob("*.bmodel")):
            yield Model(
                published.name, f"published, {published.about}", published.gigabytes * 10**9 or None, None,
                f"deploy/models/download.sh {published.name}",
            )


def in_words(found: Inspection) -> str:
    """Its family, then `sophon-demo, w4f16, context 512`, or why the worker cannot drive it."""
    layout = found.layout
    if layout is None:
        return found.problem or ""
    kind = found.quantisation or quantisation_by_name(found.bmodel.path)
    return ", ".join(word for word in (layout.family, layout.kind, kind, f"context {layout.context}") if word)


def _in_folder(folder: Path) -> Iterator[Model]:
    for place, folders, files in os.walk(folder):
        directory = Path(place)
        depth = len(directory.relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if depth < _DEPTH and not name.endswith(".part"))
        bmodels = sorted(directory / name for name in files if name.endswith(".bmodel"))
        if "config.json" in files:
            yield from _directory(directory, bmodels)
        else:
            for bmodel in bmodels:
                what = _described(bmodel)
                if what:
                    yield Model(str(bmodel), f"{what}; needs a config.json beside it", _bytes(bmodel), str(bmodel))


def _directory(directory: Path, bmodels: list[Path]) -> Iterator[Model]:
    try:
        ModelSpec.load(directory)
    except Unsupported as error:
        yield Model(str(directory), str(error), _bytes(directory), str(directory))
        return
    kinds = ["for CPUs"] if (directory / "onnx").is_dir() else []
    if len(bmodels) == 1:
        kinds.append(_described(directory) or "a bmodel of a single net")
    elif bmodels:
        kinds.append(f"{len(bmodels)} bmodels")
    yield Model(str(directory), "; ".join(kinds) or "neither onnx/ nor a bmodel", _bytes(directory), str(directory))


def _described(path: Path) -> str:
    """A bmodel in words; empty for a bmodel of one net, which is an intermediate file of compilation."""
    try:
        found = inspect(path)
    except Unsupported as error:
        return str(error)
    return "" if path.is_file() and len(found.bmodel.nets) == 1 else in_words(found)


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
