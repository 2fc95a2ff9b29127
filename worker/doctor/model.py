"""Checks the model's directory and the bmodel in it."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote

from sailq.shared.checks import Plan, Verdict, ok, skipped, wrong
from sailq.shared.devices import CPU
from sailq.shared.errors import Unsupported

from ..engine.families.registry import model_type
from ..engine.model import ModelSpec
from ..model_files.bmodel import read_bmodel
from ..model_files.model_paths import NAMES, resolve
from ..model_files.published import PUBLISHED, TOKENIZERS, Published
from ..runners.devices import only_bmodel
from ..runners.layout_checks import CHIP, read_layout

_NETS = "onnx"


def model(plan: Plan) -> Verdict:
    """Checks that the model's directory exists and that no file but the bmodel is missing."""
    try:
        directory = resolve(plan.model)
        spec = ModelSpec.load(directory)
    except Unsupported as error:
        return wrong(str(error), _get(plan.model))
    missing = [name for name in ("tokenizer.json", "tokenizer_config.json") if not (directory / name).is_file()]
    if "tokenizer.json" in missing and (directory / "vocab.json").is_file():
        missing.remove("tokenizer.json")  # the older pair of files
    if missing:
        what = f"{directory} lacks {' and '.join(missing)}; the checkpoint that it was made of has them."
        return wrong(what, _download(directory, spec, missing))
    if not _has_chat_template(directory):
        what = f"{directory} has no chat template; the checkpoint that it was made of has one."
        return wrong(what, _download(directory, spec, ["chat_template.json"]))
    if plan.device == CPU:
        lacking = [name for name in _net_files(spec) if not (directory / _NETS / name).is_file()]
        if lacking:
            return wrong(
                f"{directory} lacks {len(lacking)} of the nets that a CPU runs, such as {_NETS}/{lacking[0]}.",
                f"python -m deploy.models.export_onnx --dynamic --model_path {quote(str(directory))} "
                f"--out {quote(str(directory / _NETS))}",
            )
    where = "packaged" if plan.model in NAMES else str(directory)
    return ok(f"{plan.model if plan.model in NAMES else directory.name}, {where}, {spec.layers} layers")


def bmodel(plan: Plan) -> Verdict:
    """Checks that the bmodel is complete, is for this chip, and fits the model's config.json."""
    directory = resolve(plan.model)
    if plan.bmodel is None and plan.device == CPU and not any(directory.glob("*.bmodel")):
        return skipped("a CPU needs none")
    try:
        file = plan.bmodel or only_bmodel(directory)
    except Unsupported as error:
        several = sorted(directory.glob("*.bmodel"))
        return wrong(str(error), _with_bmodel(plan, several[0]) if several else _make(directory))
    try:
        found = read_bmodel(file)
    except Unsupported as error:
        return wrong(str(error), _fetch_again(file))
    try:
        layout = read_layout(found, ModelSpec.load(directory))
    except Unsupported as error:
        if found.chip != CHIP:
            aside = quote(f"{file}.{found.chip or 'other'}")
            return wrong(str(error), f"mv {quote(str(file))} {aside}\n{_make(directory)}")
        return wrong(str(error), f"sailq model inspect {quote(str(file))} --nets\n{_make(directory)}")
    return ok(f"{file.name}: {layout.kind}, context {layout.context}")


def _has_chat_template(directory: Path) -> bool:
    if any((directory / name).is_file() for name in ("chat_template.json", "chat_template.jinja")):
        return True
    try:
        return bool(json.loads((directory / "tokenizer_config.json").read_text("utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _net_files(spec: ModelSpec) -> list[str]:
    blocks = [f"block_{index}" for index in range(spec.layers)]
    return [*(f"{name}.onnx" for name in ("embedding", "lm_head", "vit", *blocks)), "weights.bin"]


def _published(path: Path) -> Published | None:
    """The published model that has the name of this directory or of the bmodel in it."""
    return next((one for one in PUBLISHED if path.name in (one.name, Path(one.bmodel).name)), None)


def _get(model: str) -> str:
    """The shell command that downloads a missing model."""
    directory = Path(model).expanduser()
    published = _published(directory)
    if published is None:
        return f"sailq model list {quote(str(directory.parent))}" if "/" in model else "sailq model list"
    folder = str(directory.parent) if "/" in model else "models"
    return f"deploy/models/download.sh {published.name} --out {quote(folder)}"


def _download(directory: Path, spec: ModelSpec, names: list[str]) -> str:
    """The shell command that downloads a checkpoint's small files."""
    hub = next((one.hub for one in PUBLISHED if one.name == directory.name), TOKENIZERS[model_type(spec.family)])
    return f"hf download {hub} {' '.join(names)} --local-dir {quote(str(directory))}"


def _make(directory: Path) -> str:
    published = _published(directory)
    if published is not None:
        return f"deploy/models/download.sh {published.name} --out {quote(str(directory.parent))}"
    return f"deploy/models/compile.sh --model_path CHECKPOINT --out {quote(str(directory))}  # on an x86 machine"


def _fetch_again(file: Path) -> str:
    published = _published(file)
    if published is not None:
        folder = quote(str(file.parent.parent))
        return f"rm -f {quote(str(file))} && deploy/models/download.sh {published.name} --out {folder}"
    return f"rsync --partial --progress BUILD_MACHINE:{quote(file.name)} {quote(str(file))}"


def _with_bmodel(plan: Plan, file: Path) -> str:
    return f"sailq worker --model {quote(plan.model)} --device {plan.device} --bmodel {quote(str(file))}"
