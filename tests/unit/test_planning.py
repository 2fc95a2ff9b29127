"""`sailq model plan`: its sums, the memory that it adds up, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import boxes
import pytest
from bmodel_files import qwen2_vl, write_bmodel
from commands import invoke, refused

from sailq.shared import devices, terminal
from sailq.shared.errors import BadRequest, TooLong, Unsupported
from sailq.shared.estimates import MeasuredJob, estimate
from sailq.worker.doctor import ion_heaps
from sailq.worker.doctor.ion_heaps import MB
from sailq.worker.model_files.bmodel import Weight
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.planning.memory import Block, Sizes, blocks, place
from sailq.worker.planning.models import find, timed
from sailq.worker.planning.plan import Workload, configurations, rate, workload
from sailq.worker.planning.timings import HOST_SHARE, RECORDED, Net, NotTimed, Timing, Timings

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1000,
    "intermediate_size": 512, "vision_config": {"depth": 3, "embed_dim": 160, "mlp_ratio": 4, "num_heads": 2},
}
SMALL = Timings("small", "tpu_mlir 0", "w4f16", "w8f16", CONFIG, {
    Net("vit", 100, 1, "f16"): Timing(50.0, 1000 * MB, 30 * MB, 200 * MB),
    Net("vit", 200, 1, "f16"): Timing(80.0, 1000 * MB, 40 * MB, 300 * MB),
    Net("block", 80): Timing(4.0, 100 * MB, 3 * MB, 50 * MB), Net("block", 160): Timing(6.0, 100 * MB, 5 * MB, 90 * MB),
    Net("block", 256): Timing(11.0, 100 * MB, 8 * MB, 92 * MB),
    Net("block_cache", 256, 4): Timing(2.0, 101 * MB, 2 * MB, 10 * MB, 40 * MB),
    Net("block_cache", 512, 4): Timing(3.0, 101 * MB, 2 * MB, 20 * MB, 80 * MB),
    Net("block_cache", 256, 8): Timing(5.0, 101 * MB, 2 * MB, 10 * MB, 80 * MB),
    Net("lm_head", 0, 4): Timing(10.0, 600 * MB, MB, 95 * MB),
    Net("lm_head", 0, 8): Timing(12.0, 600 * MB, MB, 95 * MB),
    Net("greedy_head", 0, 4): Timing(0.5), Net("greedy_head", 0, 8): Timing(0.75),
})
WORK = Workload(frames=2, height=140, width=140, grids=3, patches=100, vision_tokens=50, prompt=70, answer=11)
SIZES = Sizes(slots=4, context=256, prompts=(80, 160), patches=(100, 200), vision_quantize="f16")
FAMILY = find("qwen2-vl-7b")[1]
SPLIT = {"npu": 7615 * MB, "vpu": 2048 * MB, "vpp": 2048 * MB}


# Times


@pytest.mark.parametrize(("length", "batch", "milliseconds"), [
    (256, 4, 2.0), (384, 4, 2.5), (512, 4, 3.0),  # by length
    (256, 6, 3.5),  # by batch, of those that have such a length
    (10, 4, 2.0), (256, 1, 2.0),  # smaller than all: as much as the smallest
])
def test_between_sizes_a_time_is_on_a_straight_line(length: int, batch: int, milliseconds: float) -> None:
    assert SMALL.time("block_cache", length, batch) == milliseconds


@pytest.mark.parametrize(("length", "batch"), [(513, 4), (257, 8), (256, 9)])
def test_a_net_larger_than_all_has_no_time(length: int, batch: int) -> None:
    with pytest.raises(NotTimed, match="small"):
        SMALL.time("block_cache", length, batch)


def test_rates_are_sums_of_their_nets() -> None:
    found = rate(SMALL, WORK, SIZES)

    step = 2 * (2.0 + 0.1 / 16) + 10.0 + 0.5  # layers, of which each is flushed every 16 steps; lm_head, greedy_head
    # Of 160 tokens two prompts make use, and their six grids three launches of 200 patches.
    job = (3 * 80.0 + 2 * 6.0 + 10.0) / 2 + 10 * step / 4
    assert found.captions_per_hour == pytest.approx(3.6e6 / job * (1 - HOST_SHARE))
    assert found.tokens_per_second == pytest.approx(4000 / step * (1 - HOST_SHARE))
    assert found.step == pytest.approx(step / 1000 / (1 - HOST_SHARE))
    assert found.together == 2
    assert found.first_token == pytest.approx((80.0 + 50.0 + 2 * 4.0 + 10.0) / 1000)  # grids in two launches


def test_a_models_times_are_read_again_as_they_were_saved(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "small.json")
    assert Timings.load(tmp_path / "small.json") == SMALL


# Memory


def test_loading_allocates_every_weight_once_and_the_largest_sizes() -> None:
    memory = place(list(blocks(SMALL, SIZES)), SPLIT)
    assert memory is not None
    assert {kind: size / MB for kind, size in memory.kinds.items()} == pytest.approx({
        "weights": 2 * 100 + 600 + 1000, "embeddings": 1000 * 256 * 2 / MB, "caches": 2 * 40,
        "commands": 2 * (3 + 5 + 8 + 2) + 1 + 30 + 40,  # the context is one more length of prefill
        "activations": 92 + 95 + 300,  # what a later, larger net replaces is kept
    })


def test_a_block_goes_into_the_first_heap_with_room_for_it() -> None:
    heaps = {"npu": 1000 * MB, "vpu": 2000 * MB, "vpp": 500 * MB}
    memory = place([Block("weights", 900 * MB), Block("caches", 200 * MB), Block("commands", 100 * MB)], heaps)
    assert memory is not None
    assert memory.heaps == {"npu": 1000 * MB, "vpp": 200 * MB, "vpu": 0}
    assert (memory.total, memory.kinds["caches"]) == (1200 * MB, 200 * MB)


@pytest.mark.parametrize("sizes", [
    [2001],  # larger than each heap, though not than all
    [900, 1500, 600],  # too little stays free
])
def test_what_does_not_fit_is_refused(sizes: list[int]) -> None:
    heaps = {"npu": 1000 * MB, "vpu": 2000 * MB, "vpp": 500 * MB}
    assert place([Block("weights", size * MB) for size in sizes], heaps) is None


# Configurations


@pytest.mark.parametrize(("clip", "expected"), [
    ((2, 140, 210), (2, 140, 224, 1, 160, 40, 66)),  # sophon-demo's: 210 is rounded to 224
    ((8, 140, 224), (8, 140, 224, 4, 160, 160, 186)),
    ((5, 280, 448), (4, 280, 448, 2, 640, 320, 346)),  # an even number of frames, half to a multiple of 4
    ((1, 100, 100), (1, 112, 112, 1, 64, 16, 42)),  # an image
])
def test_a_clip_is_sized_as_a_producer_does(clip: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    work = workload(FAMILY, clip, 5, 60)
    assert (work.frames, work.height, work.width, work.grids, work.patches, work.vision_tokens, work.prompt) == expected


@pytest.mark.parametrize(("clip", "question", "answer"), [
    ((0, 140, 224), 5, 60), ((2, 0, 224), 5, 60), ((2, 140, 0), 5, 60), ((2, 140, 224), 0, 60), ((2, 140, 224), 5, 0),
    ((1000, 140, 224), 5, 60), ((2, 28, 28000), 5, 60),
])
def test_a_job_that_cannot_be_is_refused(clip: tuple[int, int, int], question: int, answer: int) -> None:
    with pytest.raises(BadRequest):
        workload(FAMILY, clip, question, answer)


def test_the_fastest_comes_first_and_each_holds_a_job() -> None:
    found = configurations(find("qwen2-vl-7b")[0], workload(FAMILY, (2, 140, 210), 5, 60), SPLIT, "w8f16")

    rates = [one.rate.captions_per_hour for one in found]
    assert rates == sorted(rates, reverse=True) and len(found) > 10
    assert len({(one.sizes.slots, one.sizes.context) for one in found}) == len(found)
    for one in found:
        assert one.sizes.context >= 80 + 64 and one.sizes.context % 32 == 0  # rows are flushed 16 at a time
        assert 66 <= one.sizes.prompts[0] <= one.sizes.prompts[-1] <= one.sizes.context
        assert sum(one.memory.heaps.values()) == one.memory.total <= sum(SPLIT.values()) - 512 * MB
        assert all(used <= SPLIT[heap] for heap, used in one.memory.heaps.items())


def test_a_longer_answer_and_smaller_heaps_leave_fewer_slots() -> None:
    timings, _ = find("qwen2-vl-7b")
    work = workload(FAMILY, (2, 140, 210), 5, 400)
    tight = {"npu": 6900 * MB, "vpu": 0, "vpp": 0}
    assert configurations(timings, work, SPLIT, "w8f16")[0].sizes.slots == 64
    assert configurations(timings, work, tight, "w8f16")[0].sizes.slots < 64
    with pytest.raises(Unsupported, match="heaps of 3000 MB"):
        configurations(timings, work, {"npu": 3000 * MB, "vpu": 0, "vpp": 0}, "w8f16")


def test_a_job_that_no_timed_net_holds_is_too_long() -> None:
    timings, _ = find("qwen2-vl-7b")
    with pytest.raises(TooLong, match="20096"):
        configurations(timings, workload(FAMILY, (2, 140, 210), 5, 20_000), SPLIT, "w8f16")


# Models


def test_a_directorys_sizes_find_its_times(tmp_path: Path) -> None:
    known = timed()["qwen2-vl-7b"]
    for name in ("preprocessor_config.json", "tokenizer.json"):
        shutil.copy(resolve("sailq-tiny") / name, tmp_path)
    more = {"image_token_id": 1, "video_token_id": 2, "model_type": "qwen2_vl", "max_position_embeddings": 2048}
    (tmp_path / "config.json").write_text(json.dumps({**known.config, **more, "num_hidden_layers": 14}))

    timings, family = find(str(tmp_path))

    assert (timings.layers, known.layers, family.merge_size) == (14, 28, 2)
    head = known.choice(16)
    assert timings.step(16, 512) - head == pytest.approx((known.step(16, 512) - head) / 2)


@pytest.mark.parametrize("model", ["nothing", "sailq-tiny"])
def test_a_model_without_times_is_refused(model: str) -> None:
    with pytest.raises(Unsupported, match="qwen2-vl-7b"):
        find(str(resolve(model)) if model == "sailq-tiny" else model)


@pytest.mark.parametrize("fields", [{"vision_config": []}, {"text_config": None}, {"vision_config": "x"}, {}])
def test_a_config_of_other_types_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "image_token_id": 1, **fields}))
    with pytest.raises(Unsupported, match="config.json: "):
        find(str(tmp_path))


def test_every_file_of_times_is_named_as_its_model() -> None:
    assert {"qwen2-vl-7b"} <= timed().keys()
    for name, timings in timed().items():
        assert (timings.model, (RECORDED / f"{name}.json").is_file()) == (name, True)


# A bmodel that exists


@pytest.fixture
def seven_b(tmp_path: Path) -> Path:
    """A model directory whose bmodel states the sizes of a 7B in INT4, its ViT in 8 bits."""
    folder = tmp_path / "seven"
    folder.mkdir()
    more = {"image_token_id": 1, "video_token_id": 2, "model_type": "qwen2_vl", "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps({**timed()["qwen2-vl-7b"].config, **more}))
    nets = qwen2_vl(layers=28, slots=16, context=512, prompts=(80, 160, 512), patches=(160,), hidden=3584,
                    row=(4, 128), vocabulary=152064)
    weights = {"block_cache_0": [Weight("tpu.A16MatMul.weight", 3584 * 512 // 2)],
               "vit": [Weight("tpu.A16MatMul.weight", 100), Weight("tpu.Gather.source", 585 * 40)],
               "lm_head": [Weight("tpu.A16MatMul.weight", 100)]}
    write_bmodel(folder / "seven.bmodel", nets, weights)
    return folder


def test_a_bmodels_estimate_is_that_of_its_sizes(seven_b: Path) -> None:
    found = estimate(str(seven_b), MeasuredJob(((8, 140, 224),), 186, 50.0))

    sizes = Sizes(16, 512, (512,), (160,), "w8f16")
    expected = rate(timed()["qwen2-vl-7b"], Workload(8, 140, 224, 4, 160, 160, 186, 50), sizes)
    assert found is not None and "assumed" in found.basis
    assert (found.first_token_latency, found.captions_per_hour) == (expected.first_token, expected.captions_per_hour)
    assert found.tokens_per_second == pytest.approx(expected.tokens_per_second / 16)
    assert found.all_tokens_per_second == pytest.approx(expected.captions_per_hour * 50 / 3600)


@pytest.mark.parametrize("model", ["sailq-tiny", "nothing"])
def test_a_model_without_times_or_bmodel_has_no_estimate(model: str) -> None:
    assert estimate(model, MeasuredJob(((2, 140, 224),), 66, 60.0)) is None


def test_media_of_two_sizes_or_none_have_no_estimate(seven_b: Path) -> None:
    assert estimate(str(seven_b), MeasuredJob(((2, 140, 224), (2, 112, 112)), 90, 60.0)) is None
    assert estimate(str(seven_b), MeasuredJob((), 26, 60.0)) is None


# The command


def test_json_has_every_number() -> None:
    done = invoke("model", "plan", "--json", "--clip", "8x140x224", "--answer", "120", "--heaps", "7615,2048,4096")

    said = json.loads(done.stdout)
    best = said["configurations"][0]
    assert (done.returncode, done.stderr, said["heaps_from"]) == (0, "", "--heaps")
    assert said["heaps"] == {"npu": 7615 * MB, "vpu": 2048 * MB, "vpp": 4096 * MB}
    assert (said["job"]["prompt"], said["job"]["answer"], said["job"]["grids"]) == (186, 120, 4)
    assert said["assumed_host_share"] == HOST_SHARE
    parts = ("weights", "embeddings", "caches", "commands", "activations")
    assert sum(best["memory"][part] for part in parts) == best["memory"]["total"]
    words = said["compile"].split()
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--batch"] == str(best["slots"]) and options["--seq_length"] == str(best["context"])
    lengths = [*options.get("--vision_lengths", "").split(","), options["--vision_seq_length"]]
    assert [int(length) for length in lengths if length] == best["patches"]


def test_a_box_s_own_heaps_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    boxes.device_tree(tmp_path, {"npu": 7000, "vpu": 1024, "vpp": 3000})
    monkeypatch.setattr(devices, "is_box", lambda root: True)
    read = ion_heaps.read_heaps
    monkeypatch.setattr(ion_heaps, "read_heaps", lambda root: read(tmp_path))

    said = json.loads(invoke("model", "plan", "--json").stdout)

    assert said["heaps"] == {"npu": 7000 * MB, "vpu": 1024 * MB, "vpp": 3000 * MB}
    assert said["heaps_from"].startswith(str(tmp_path))


def test_people_get_the_table_the_assumption_and_the_command() -> None:
    done = invoke("model", "plan")

    best = json.loads(invoke("model", "plan", "--json").stdout)["configurations"][0]
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == [f"{best['slots']}"]]
    assert rows[0][1] == f"{best['context']}" and f"{best['captions_per_hour']:,.0f}" in rows[0]
    assert done.returncode == 0 and "assumed" in done.stdout and "7615" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("deploy/models/compile.sh --model_path CHECKPOINT")


def test_80_columns_show_every_number_and_the_command_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that the terminal gets in several lines would run in pieces when it is pasted."""
    monkeypatch.setattr(terminal, "_PIPED_WIDTH", 80)
    lines = invoke("model", "plan").stdout.splitlines()

    said = json.loads(invoke("model", "plan", "--json").stdout)
    sizes = [
        (f"{one['slots']}", f"{one['context']}", ",".join(map(str, one["prompts"])), ",".join(map(str, one["patches"])),
         f"{one['memory']['total'] // MB:,}") for one in said["configurations"]
    ]
    rows = [words for line in lines if len(words := line.split()) == 10]
    assert [(*row[:4], row[-1]) for row in rows if row[0].isdigit()] == sizes
    assert lines[-1] == said["compile"] and all(len(line) <= 80 for line in lines[:-1])


def test_a_job_that_is_too_long_names_the_net_that_has_no_time() -> None:
    refused(invoke("model", "plan", "--clip", "24x280x448"), "too_long", "block, length 1952")


@pytest.mark.parametrize(("arguments", "code"), [
    (["--clip", "0x140x224"], "bad_request"), (["--clip", "140x224"], "bad_request"),
    (["--clip", "axbxc"], "bad_request"), (["--heaps", "7615"], "bad_request"), (["--heaps", "1,1,1"], "unsupported"),
    (["--model", "x"], "unsupported"), (["--vision-quantize", "w4"], "bad_request"),
    (["--question", "0"], "bad_request"), (["--answer", "9000"], "too_long"),
])
def test_a_wrong_option_is_refused_in_one_sentence(arguments: list[str], code: str) -> None:
    refused(invoke("model", "plan", *arguments), code)
    said = json.loads(invoke("model", "plan", "--json", *arguments).stdout)
    assert said["error"]["code"] == code
