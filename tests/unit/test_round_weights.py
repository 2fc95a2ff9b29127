"""The rounding of weights: by hand, on files, and what is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import CONFIG, SMALL, hub_name, run, tensors, write
from safetensors import safe_open
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from deploy.models import random_checkpoint, round_weights
from deploy.models.checkpoint import Checkpoint
from deploy.models.families.registry import FAMILIES

W4, W4_BF16, W8 = (round_weights.SCHEMES[name] for name in ("w4f16", "w4bf16", "w8f16"))
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


def rounded(group: list[float], scheme: Any = W4) -> list[float]:
    values: list[float] = round_weights.rounded(np.array([group], np.float32), scheme, len(group))[0].tolist()
    return values


def test_a_value_takes_the_nearest_of_16_steps_and_ties_go_away_from_zero() -> None:
    assert rounded([-7.5, 7.5, 0.5, -0.5, 0.4, 2.6]) == [-8, 7, 1, -1, 0, 3]  # scale 1, zero point 8, clipped at 15
    assert rounded([0, 15, 0.49999997, 6.5]) == [0, 15, 0, 7]
    assert rounded([0, -1.5, -0.25, -0.2]) == [np.float16(0.1) * -step for step in (0, 15, 3, 2)]


def test_8_bits_have_256_steps() -> None:
    assert rounded([-127.5, 127.5, 0.5, 100.2], W8) == [-128, 127, 1, 100]


@pytest.mark.parametrize(("scheme", "half"), [(W4, torch.float16), (W4_BF16, torch.bfloat16), (W8, torch.float16)])
def test_scale_and_weight_are_in_half_precision(scheme: Any, half: torch.dtype) -> None:
    most = 2**scheme.bits - 1
    scale = torch.tensor(1 / most).to(half).float()
    steps = torch.arange(most + 1)
    assert rounded((steps / most).tolist(), scheme) == (steps * scale).to(half).tolist()


def test_a_group_without_zero_is_rounded_with_tpu_mlirs_error() -> None:
    """Its zero point would lie outside of the integers, so values saturate."""
    step = np.float16(0.1)
    assert rounded([0.5, 1, 1.5, 2]) == [float(np.float16(n * np.float32(step))) for n in (5, 10, 15, 15)]
    assert rounded([-2, -1, -0.5, -0.75]) == [float(np.float16(n * np.float32(step))) for n in (-15, -10, -5, -8)]
    (constant,) = set(rounded([0.3] * 4))
    assert constant == pytest.approx(1e-5, rel=0.05)
    assert rounded([0] * 4) == [0] * 4


def test_each_group_of_a_row_has_a_scale_of_its_own() -> None:
    generator = np.random.default_rng(1)
    weight = (generator.normal(0, 1, (6, 8)) * 10.0 ** np.arange(-3, 3)[:, None]).astype(np.float32)
    whole = round_weights.rounded(weight, W4, 4)
    for row in range(6):
        for start in (0, 4):
            assert whole[row, start : start + 4].tolist() == rounded(weight[row, start : start + 4].tolist())
    assert not np.array_equal(whole, round_weights.rounded(weight, W4, 8))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """float16 tensors of `CONFIG`'s model, by transformers 5's names."""
    torch.manual_seed(4)
    return tensors(Qwen2VLForConditionalGeneration(Qwen2VLConfig(**CONFIG)).half())


def command(model: Path, out: Path, *options: str) -> int:
    code = round_weights.main(["--model_path", str(model), "--out", str(out), *options])
    return code


def stored(directory: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """(file, tensor) by name."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: (path.name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return found


PROJECTIONS = {f"{part}_proj.weight" for part in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize(
    ("quantize", "dtype", "named", "shards"),
    [
        ("w4f16", torch.float16, hub_name, 3), ("w4f16", torch.bfloat16, str, 1), ("w4bf16", torch.bfloat16, str, 2),
        ("w4bf16", torch.float16, hub_name, 1), ("w8f16", torch.float32, hub_name, 2),
    ],
)
def test_the_layers_matrices_are_rounded_and_nothing_else(
    quantize: str, dtype: torch.dtype, named: Callable[[str], str], shards: int, weights: dict[str, torch.Tensor],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(round_weights, "_PIECE", 1000)  # so that each matrix has several parts
    scheme = round_weights.SCHEMES[quantize]
    typed = {name: tensor.to(dtype) for name, tensor in weights.items()}
    model, out = write(tmp_path / "model", CONFIG, typed, named=named, shards=shards), tmp_path / "out"
    (model / "merges.txt").write_text("a b\n")
    (model / "model.onnx").write_text("no part of a checkpoint")
    assert command(model, out, "--quantize", quantize) == 0
    before, after = stored(model), stored(out)
    assert list(before) == list(after)
    changed = set()
    for name, (file, old) in before.items():
        place, new = after[name]
        assert place == file and new.shape == old.shape
        if ".".join(name.split(".")[-2:]) in PROJECTIONS:
            changed.add(name)
            expected = round_weights.rounded(old.float().numpy(), scheme, 64)
            assert torch.equal(new.float(), torch.from_numpy(expected)) and not torch.equal(new.float(), old.float())
            assert new.dtype == (dtype if dtype == torch.float32 else HALVES[scheme.dtype])
        else:
            assert new.dtype == old.dtype and torch.equal(new, old)
    assert len(changed) == 7
    left = {path.name for path in model.iterdir()} - {"model.onnx"}
    assert {path.name for path in out.iterdir()} == left
    for name in left:
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (model / name).read_bytes()
    assert run(out, tmp_path / "onnx", *SMALL) == 0


def test_the_vits_matrices_are_rounded_in_groups_where_their_rows_divide_into_these(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model, out = write(tmp_path / "model", CONFIG, weights, named=str, shards=2), tmp_path / "out"
    assert command(model, out, "--quantize", "f16", "--vision_quantize", "w8f16") == 0
    before, after = stored(model), stored(out)
    changed = {name for name in before if not torch.equal(before[name][1], after[name][1])}
    parts = ("blocks.0.mlp.fc2", "merger.mlp.0", "merger.mlp.2")  # the rows of other matrices have 160 or 1176
    assert changed == {f"model.visual.{part}.weight" for part in parts}
    for name in changed:
        expected = round_weights.rounded(before[name][1].float().numpy(), W8, 64)
        assert torch.equal(after[name][1].float(), torch.from_numpy(expected))
        assert after[name][1].dtype == torch.float16


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrices_of_every_family_are_its_linear_layers(family: str, tmp_path: Path) -> None:
    """But for lm_head."""
    random_checkpoint.write(tmp_path / "model", family, tied=False)
    model = Checkpoint(tmp_path / "model").model.model
    linear = {f"model.{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    plan = round_weights.Plan(round_weights.Rounding(W4, 1), round_weights.Rounding(W8, 1))
    shapes = {f"model.{name}": parameter.shape for name, parameter in model.named_parameters()}
    rounded = {name: plan.of(name, shape) for name, shape in shapes.items()}
    assert {name for name, found in rounded.items() if found} == linear.keys()
    assert {found.scheme for name, found in rounded.items() if found and ".visual." in name} == {W8}


def test_a_files_metadata_stay(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = write(tmp_path / "model", CONFIG, weights)
    file = model / "model.safetensors"
    (length,) = struct.unpack("<Q", (data := file.read_bytes())[:8])
    header = json.dumps({"__metadata__": {"format": "pt"}, **json.loads(data[8 : 8 + length])}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    assert command(model, tmp_path / "out") == 0
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as copied:
        assert copied.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("config", "options", "complaint"),
    [
        ({}, ["--group", "0"], "--group is 0, and must be at least 1."),
        ({}, ["--group", "96"], "has 320 columns, not a multiple of 96: see --group."),
        ({"model_type": "llama"}, [], "holds a 'llama' model; only qwen2_vl"),
        ({"tie_word_embeddings": False}, [], "lacks the tensor lm_head.weight"),
    ],
)
def test_a_checkpoint_that_cannot_be_rounded_is_reported_and_leaves_nothing(
    config: dict[str, Any], options: list[str], complaint: str, weights: dict[str, torch.Tensor], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write(tmp_path / "model", CONFIG | config, weights)
    assert command(model, tmp_path / "out", *options) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("round_weights: ") and complaint in told
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_directory_is_not_changed(
    weights: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "model", CONFIG, weights)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    for out in (model, tmp_path):
        assert command(model, out) == 1
        assert capsys.readouterr().err == f"round_weights: {out} already exists: --out must name a new directory.\n"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_an_interruption_leaves_nothing(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(round_weights, "_round_matrix", interrupted)
    assert command(write(tmp_path / "model", CONFIG, weights), tmp_path / "out") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
