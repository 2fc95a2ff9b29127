"""How long a model's nets take on a BM1684X, and how much memory: the compiler's estimate of nets exported and
compiled as any other.

The weights are random, written from the config alone. There is one decoder layer, because all take the same time. The
ViT is compiled with one block and with two, because TPU-MLIR takes more than 24 GB of memory to simplify all its 32:
its time is that of one block and 31 times the difference. All 32 of a Qwen2-VL, compiled once without simplifying, take
the same 60.0935 ms at 160 patches. A Qwen3-VL has three blocks, whose features are the deepstack's, and four.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from deploy.models import exit_codes
from deploy.models.checkpoint import Checkpoint, older_name
from deploy.models.export_onnx import export_net
from deploy.models.layout import Sizes, cut
from deploy.models.weights import WEIGHTS, WeightsFile
from sailq.worker.model_files.bmodel import read_bmodel
from sailq.worker.planning.timings import Net, Timing

MODELS = Path(__file__).parents[2] / "deploy/models"

QUANTIZE, LM_HEAD = "w4f16", "w8f16"
"""compile.sh's --quantize and --lm_head_quantize."""


def _qwen2_vl(**sizes: Any) -> dict[str, Any]:
    return _flat("qwen2_vl", sizes, {
        "depth": 32, "embed_dim": 1280, "hidden_size": sizes["hidden_size"], "mlp_ratio": 4, "num_heads": 16,
    })


def _qwen2_5_vl(**sizes: Any) -> dict[str, Any]:
    return _flat("qwen2_5_vl", sizes, {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "out_hidden_size": sizes["hidden_size"], "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    })


def _flat(kind: str, sizes: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": kind, "torch_dtype": "float16", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, **sizes,
        "vision_config": vision,
    }


def _qwen3_vl(vision: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    text = {
        "model_type": "qwen3_vl_text", "dtype": "float16", "max_position_embeddings": 262144, "rms_norm_eps": 1e-6,
        "rope_theta": 5000000, "head_dim": 128, "vocab_size": 151936, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}, **sizes,
    }
    return {
        "model_type": "qwen3_vl", "tie_word_embeddings": sizes["tie_word_embeddings"], "text_config": text,
        "vision_config": {
            "model_type": "qwen3_vl", "num_heads": 16, "num_position_embeddings": 2304, "patch_size": 16,
            "out_hidden_size": sizes["hidden_size"], **vision,
        },
    }


CONFIGS = {
    "qwen2-vl-7b": _qwen2_vl(
        tie_word_embeddings=False, vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4),
    "qwen2-vl-2b": _qwen2_vl(
        tie_word_embeddings=True, vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2),
    "qwen2.5-vl-7b": _qwen2_5_vl(
        tie_word_embeddings=False, vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4),
    "qwen3-vl-4b": _qwen3_vl(
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]},
        tie_word_embeddings=True, hidden_size=2560, intermediate_size=9728),
    "qwen3-vl-8b": _qwen3_vl(
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
        tie_word_embeddings=False, hidden_size=4096, intermediate_size=12288),
}
"""What determines the sizes in the config.json of the Instruct models of these names on the hub."""
OPSET = 17
_NOISE = 2**24
"""Random numbers that weights are filled with, over and over, each from another start: equal ones would be made one."""
_FREE_GB = 15
_SOURCES = ("compile_net.sh", "export_onnx.py", "modules.py", "layout.py", "decoder_nets.py", "tpu_env.sh",
            "weights.py", "lazy.py", "families/vision_nets.py", "families/{family}.py")


class BenchError(exit_codes.Failure):
    """The reason why a net cannot be timed, in one sentence."""


class Bench:
    """Times the nets of one model, one after the other. Each result is kept in `folder` under what it was made of, so
    that an interrupted run goes on where it stopped, and a net is timed again after a change of the exporter."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """`config`: one of `CONFIGS`."""
        self._config = config
        self._kept, self._work = folder / "timings", folder / "work"
        self._model, self._shallow = self._work / "model", self._work / "shallow"

    def time(self, nets: Sequence[Net]) -> dict[Net, Timing]:
        """Every net's timing; one that is not known yet takes minutes and up to 15 GB of memory and disk.

        Raises:
            BenchError: the compiler cannot be installed, or fails on a net.
        """
        self._kept.mkdir(parents=True, exist_ok=True)
        try:
            return {net: self._timing(net, f"[{number}/{len(nets)}]") for number, net in enumerate(nets, 1)}
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _timing(self, net: Net, progress: str) -> Timing:
        path = self._kept / f"{net.net}-{self._key(net)}.json"
        if not path.exists():
            print(f"{progress} compiling {net}", file=sys.stderr, flush=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(asdict(self._compile(net))))
            partial.rename(path)
        timing = Timing(**json.loads(path.read_text()))
        print(f"{progress} {net}: {timing.milliseconds:.3f} ms by the compiler's estimate", file=sys.stderr, flush=True)
        return timing

    def _compile(self, net: Net) -> Timing:
        self._prepare()
        if net.net != "vit":
            return self._compiled(net, self._model)
        one, two = (self._compiled(net, model) for model in (self._shallow, self._model))
        more = self._config["vision_config"]["depth"] - _shallowest(self._config)
        grown = {
            name: round(value + more * (getattr(two, name) - value), 6)
            for name, value in asdict(one).items() if name != "neurons"  # blocks compute in the same memory
        }
        return replace(two, **grown)

    def _compiled(self, net: Net, model: Path) -> Timing:
        work = self._work / "net"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        onnx, bmodel = export(net, model, work), work / "out.bmodel"
        call(str(MODELS / "compile_net.sh"), str(onnx), str(bmodel), QUANTIZE, LM_HEAD, *filter(None, [net.quantize]))
        memory = read_bmodel(bmodel).memory
        return Timing(
            milliseconds(bmodel.with_suffix(".profile")), memory.weights, memory.commands, memory.neurons, memory.io)

    def _prepare(self) -> None:
        """What every net is made with, once a run: the compiler and a checkpoint."""
        if self._model.exists():
            return
        shutil.rmtree(self._work, ignore_errors=True)
        free = shutil.disk_usage(self._kept).free / 1e9
        if free < _FREE_GB:
            raise BenchError(f"compiling needs {_FREE_GB} GB in {self._kept}, where {free:.0f} GB are free")
        call(str(MODELS / "tpu_env.sh"))
        self._work.mkdir()
        depth = _shallowest(self._config)
        write_checkpoint(self._model, _with_depths(self._config, 1, depth + 1))
        self._shallow.mkdir()
        (self._shallow / "config.json").write_text(json.dumps(_with_depths(self._config, 1, depth)))
        (self._shallow / "model.safetensors").symlink_to(self._model / "model.safetensors")

    def _key(self, net: Net) -> str:
        """A digest of everything that determines a net's time."""
        names = (name.format(family=self._config["model_type"]) for name in _SOURCES)
        sources = ((MODELS / name).read_text() for name in names)
        made_of = [repr(net), QUANTIZE, LM_HEAD, json.dumps(self._config), *sources]
        return hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]


def _shallowest(config: dict[str, Any]) -> int:
    """The least blocks of a ViT with all of its outputs."""
    return max(1, len(config["vision_config"].get("deepstack_visual_indexes", ())))


def _with_depths(config: dict[str, Any], layers: int, vision: int) -> dict[str, Any]:
    """The same model with fewer layers, and as many outputs of the ViT."""
    tower = config["vision_config"] | {"depth": vision}
    if "deepstack_visual_indexes" in tower:
        tower["deepstack_visual_indexes"] = list(range(_shallowest(config)))
    if "fullatt_block_indexes" in tower:  # a window's mask takes as long as a whole one
        tower["fullatt_block_indexes"] = []
    text = {"num_hidden_layers": layers}
    if "text_config" in config:
        text = {"text_config": config["text_config"] | text}
    return config | text | {"vision_config": tower}


def compiler() -> str:
    """The compiler's name and version, as tpu_env.sh installs it."""
    (version,) = re.findall(r"tpu_mlir==([\d.]+)", (MODELS / "tpu_env.sh").read_text())
    return f"tpu_mlir {version}"


def write_checkpoint(directory: Path, config: dict[str, Any]) -> None:
    """A random float16 checkpoint with the hub's names; it is a directory only when it is whole."""
    partial = directory.with_name(f"{directory.name}.partial")
    partial.mkdir()
    text = json.dumps(config)
    (partial / "config.json").write_text(text)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**json.loads(text)))  # it changes a copy
    named = str if "text_config" in config else older_name
    tensors = {named(name): random_weights(parameter.shape, number)
               for number, (name, parameter) in enumerate(model.named_parameters())}
    save_file(tensors, partial / "model.safetensors")
    partial.rename(directory)


def random_weights(shape: torch.Size, start: int) -> torch.Tensor:
    """The same noise over and over, from `start` on, float16."""
    count = shape.numel()
    return _noise().roll(start).repeat(-(-count // _NOISE))[:count].reshape(shape).clone()


@functools.cache
def _noise() -> torch.Tensor:
    return torch.empty(_NOISE, dtype=torch.float16).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))


def export(net: Net, model: Path, out: Path) -> Path:
    """The ONNX file of one net, by deploy/models' exporter, and its weights beside it."""
    checkpoint = Checkpoint(model)
    name, sizes = _exported(net)
    (one,) = (one for one in cut(checkpoint, sizes) if one.name == name)
    with (out / WEIGHTS).open("wb") as file:
        export_net(one, WeightsFile(file, checkpoint), out, OPSET)
    return out / f"{name}.onnx"


def _exported(net: Net) -> tuple[str, Sizes]:
    """The exporter's name for a net, and sizes with which it makes it."""
    if net.net == "vit":
        return f"vit@{net.length}", Sizes(vision_seq_length=net.length + 4, vision_lengths=(net.length,))
    if net.net == "block":
        return f"block_0@{net.length}", Sizes(seq_length=net.length + 1, prefill_lengths=(net.length,))
    name = "block_cache_0" if net.net == "block_cache" else net.net
    return name, Sizes(seq_length=net.length or 2, batch=net.batch)


def call(*command: str) -> None:
    """Run a command, and leave none of its processes behind when this one is interrupted.

    Raises:
        BenchError: it fails; what it wrote to stderr has been seen.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        raise BenchError(f"{Path(command[0]).name} failed with exit code {process.returncode}")


def milliseconds(profile: Path) -> float:
    """The time of a net in a `compiler_profile_0.txt`.

    Raises:
        BenchError: there is none, as for nets that the chip's own processor drives: their time depends on the data.
    """
    found = re.search(r"runtime: ([\d.]+)ms", profile.read_text()) if profile.exists() else None
    if not found:
        raise BenchError(f"the compiler has no estimate of this net's time: {profile} states no runtime")
    return float(found.group(1))
