"""Reads a checkpoint: transformers' model without data, and its tensors as views of their files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from sailq.shared.errors import Unsupported
from sailq.worker.engine.families.family import Family
from sailq.worker.engine.model import ModelSpec

from .exit_codes import Failure

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F16", "BF16", "F32"}
_RENAMED = (("model.language_model.", "model."), ("model.visual.", "visual."))
"""Prefixes of tensor names: those of transformers 5, and those of `older_name`."""


class ExportError(Failure):
    """A checkpoint cannot be exported. The message is one sentence for the user."""


def locate(model_path: str) -> Path:
    """The directory of a model: `model_path` itself, or the local copy of a model on the Hugging Face hub, which is
    downloaded if it is not complete."""
    directory = Path(model_path)
    if directory.is_dir():
        return directory
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_path):
        raise ExportError(f"There is no directory {model_path}.")
    try:
        return Path(snapshot_download(model_path, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise ExportError(f"{model_path} is not a directory, and cannot be downloaded from the hub: {cause}") from None


def older_name(name: str) -> str:
    """A tensor's name in the hub's checkpoints of Qwen2-VL and Qwen2.5-VL, from transformers' name. Newer checkpoints
    have transformers'."""
    return next((old + name.removeprefix(new) for new, old in _RENAMED if name.startswith(new)), name)


class Checkpoint:
    """A directory with config.json and one or several safetensors files.

    Attributes:
        config: transformers' configuration; tied embeddings are its `tie_word_embeddings`.
        family: as a worker reads it. What no worker would serve is not exported.
        model: transformers' model, whose parameters lie on the `meta` device: they have names and
            shapes but no data, which `tensor` reads. Its rotary embeddings are real.

    Raises:
        ExportError: a file or a tensor is missing, or is not what config.json says.
    """

    def __init__(self, directory: Path) -> None:
        self.family = _family(directory)
        self.model = _skeleton(directory)
        self.config = self.model.config
        self._places = self._find(directory)

    def tensor(self, parameter: Tensor) -> Tensor:
        """A parameter's data in the file's dtype, as a view of the file. Only the parts that are used are read.

        Their memory is freed with the view.
        """
        path, name = self._places[parameter]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def _find(self, directory: Path) -> dict[Tensor, tuple[Path, str]]:
        """Finds each of the model's parameters. Returns (file, tensor name) by parameter."""
        stored = {}
        for path in _files(directory):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (it is no dict)
                        part = file.get_slice(name)
                        stored[name] = (path, part.get_dtype(), part.get_shape())
            except (OSError, SafetensorError) as error:
                raise ExportError(f"{path} cannot be read: {error}") from None
        places = {}
        for name, parameter in self.model.named_parameters():
            names = [name, older_name(name)]
            found = next((name for name in names if name in stored), None)
            if found is None:
                raise ExportError(f"{directory} lacks the tensor {names[-1]}, which its config.json calls for.")
            path, dtype, shape = stored[found]
            if shape != list(parameter.shape):
                raise ExportError(f"{found} in {path} has the shape {shape}; config.json says {list(parameter.shape)}.")
            if dtype not in _DTYPES:
                raise ExportError(f"{found} in {path} is {dtype}; only float16, bfloat16 and float32 are exported.")
            places[parameter] = (path, found)
        return places


def _family(directory: Path) -> Family:
    try:
        return ModelSpec.load(directory).family
    except Unsupported as error:
        raise ExportError(str(error)) from None


def _skeleton(directory: Path) -> Any:
    """transformers' model for a directory's config.json, with float32 parameters without data, and real rotary
    angles."""
    fields = _json(directory / "config.json")
    assert fields is not None  # `_family` has read it
    try:
        config: Any = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
        text, visual = model.model.language_model, model.model.visual
        text.rotary_emb = type(text.rotary_emb)(config.text_config)
        visual.rotary_pos_emb = type(visual.rotary_pos_emb)(config.vision_config)
    except Exception as error:  # each field has its own validators
        cause = " ".join(str(error).split())
        raise ExportError(f"{directory}/config.json is invalid: {cause}") from None
    return model.eval().float()


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path} does not hold a JSON object.")
    return value


def _files(directory: Path) -> list[Path]:
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    index = _json(directory / _INDEX)
    if index is None:
        raise ExportError(f"{directory} holds neither {_SINGLE} nor {_INDEX}.")
    paths = [directory / name for name in sorted(set(index.get("weight_map", {}).values()))]
    for path in paths:
        if not path.is_file():
            raise ExportError(f"{path} is missing; {_INDEX} names it.")
    return paths
