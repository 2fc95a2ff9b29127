"""The bench of a BM1684X's nets: the profile that it reads, what it keeps, and the figures that must hold."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sailq.worker.planning.models import timed
from sailq.worker.planning.timings import Net, Timing, Timings
from tests.bench import bm1684x, tpu_nets

ROOT = Path(__file__).parents[2]
CONFIG = tpu_nets.CONFIGS[bm1684x.MODEL]

PROFILE = """
MatMul_15|MM|s:18813650|b:3220|g:2149|e:18814169|t:520
--------------------------------------
API_END total_cycle:18833450|b:3224|g:2156
TCYC : 18833450
DDR BW USAGE : 84.32607190%
#######################################


flops: 1090012676, runtime: 18.833450ms, ComputationAbility: 0.057876T
"""

def test_a_profile_ends_with_the_time(tmp_path: Path) -> None:
    profile = tmp_path / "net.profile"
    profile.write_text(PROFILE)
    assert tpu_nets.milliseconds(profile) == 18.83345


@pytest.mark.parametrize("text", ["", None])
def test_a_net_without_an_estimate_is_reported(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "net.profile").write_text(text)
    with pytest.raises(tpu_nets.BenchError, match="no estimate"):
        tpu_nets.milliseconds(tmp_path / "net.profile")


def test_a_vit_is_one_block_and_31_times_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = tpu_nets.Bench(tmp_path, CONFIG)
    of_depth = {"shallow": Timing(3.0, 60, 5, 9, 2), "model": Timing(4.5, 100, 7, 9, 2)}
    monkeypatch.setattr(bench, "_prepare", lambda: None)
    monkeypatch.setattr(bench, "_compiled", lambda net, model: of_depth[model.name])
    net = Net("vit", 160, 1, "w8f16")
    assert bench.time([net]) == {net: Timing(3 + 31 * 1.5, 60 + 31 * 40, 5 + 31 * 2, 9, 2)}


def test_what_was_timed_is_not_timed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nets, compiled = [Net("block", 96), Net("greedy_head", 0, 4)], []

    def compile_(self: object, net: object) -> object:
        compiled.append(net)
        if len(compiled) == 2:
            raise KeyboardInterrupt
        return Timing(2.0, 3)

    monkeypatch.setattr(tpu_nets.Bench, "_compile", compile_)
    with pytest.raises(KeyboardInterrupt):
        tpu_nets.Bench(tmp_path, CONFIG).time(nets)
    assert tpu_nets.Bench(tmp_path, CONFIG).time(nets) == dict.fromkeys(nets, Timing(2.0, 3))
    assert compiled == [nets[0], nets[1], nets[1]]


@pytest.mark.proof
def test_a_checkpoint_can_be_exported_and_its_config_stays_as_it_was(tmp_path: Path) -> None:
    config = {**CONFIG, "num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 64,
              "num_attention_heads": 2, "num_key_value_heads": 1,
              "vision_config": {"depth": 1, "embed_dim": 160, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 256}}
    before = json.dumps(config)
    tpu_nets.write_checkpoint(tmp_path / "model", config)
    assert json.dumps(config) == before  # results are stored under a hash of their inputs
    for net, name in ((Net("block_cache", 32, 2), "block_cache_0"), (Net("block", 16), "block_0@16"),
                      (Net("vit", 16), "vit@16"), (Net("lm_head", 0, 2), "lm_head")):
        (tmp_path / name).mkdir()
        assert tpu_nets.export(net, tmp_path / "model", tmp_path / name) == tmp_path / name / f"{name}.onnx"


@pytest.mark.proof
def test_an_interrupted_call_leaves_no_process(tmp_path: Path, eventually: Callable[..., None]) -> None:
    pid = tmp_path / "pid"
    script = f"from tests.bench import tpu_nets; tpu_nets.call('bash', '-c', 'sleep 60 & echo $! >{pid}; wait')"
    running = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
    eventually(lambda: pid.exists() and pid.read_text().strip(), 60)
    running.send_signal(signal.SIGINT)
    assert running.wait(30) != 0
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    eventually(lambda: not stat.exists() or " Z " in stat.read_text())


def test_a_missing_python_310_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TPU_ENV", str(tmp_path / "env"))
    monkeypatch.setenv("PYTHON310", "/nowhere/python3.10")
    with pytest.raises(tpu_nets.BenchError, match=r"tpu_env\.sh failed"):
        tpu_nets.Bench(tmp_path / "out", CONFIG).time([Net("greedy_head")])
    assert "needs Python 3.10" in capfd.readouterr().err
    assert not (tmp_path / "out/work").exists()


@pytest.mark.proof
def test_every_table_says_whose_estimate_it_is_what_is_assumed_and_what_prints_it() -> None:
    printed = bm1684x.tables(recorded())
    texts, tables = printed.split("\n\n")[::2], printed.split("\n\n")[1::2]
    assert all("the compiler's estimate" in text for text in texts) and all(table.startswith("|") for table in tables)
    assert "make bench-tpu" in printed and "assumed" in printed and "3.55" in printed
    assert len(tables[1].splitlines()) == 2 + len(bm1684x.CLIPS) * len(bm1684x.ANSWERS)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    bm1684x.draw(recorded(), tmp_path / "new/plot.png")
    assert (tmp_path / "new/plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_recorded_times_are_of_the_nets_that_are_timed() -> None:
    for name, timings in timed().items():
        assert list(timings.nets) == list(bm1684x.NEWER_NETS if name in bm1684x.NEWER else bm1684x.NETS), name
        assert (timings.quantize, timings.lm_head_quantize) == (tpu_nets.QUANTIZE, tpu_nets.LM_HEAD)
        assert timings.config == tpu_nets.CONFIGS[name]


def test_the_recorded_times_meet_the_bounds() -> None:
    for row in bm1684x.rows(recorded()):
        print(f"\nfigure: Qwen2-VL-7B INT4 on a BM1684X, the compiler's estimate: {row.what}: {row.estimate:.4g}")
        assert row.met, row


@pytest.mark.parametrize("model", bm1684x.NEWER)
def test_the_recorded_times_of_the_newer_models_meet_the_bounds(model: str) -> None:
    for row in bm1684x.newer_rows(timed()[model]):
        print(f"\nfigure: {model} INT4 on a BM1684X, the compiler's estimate: {row.what}: {row.estimate:.4g}")
        assert row.met, row


def recorded() -> Timings:
    return timed()[bm1684x.MODEL]
