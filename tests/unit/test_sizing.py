"""Frame numbers and sizes against qwen-vl-utils itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import qwen_oracle as oracle
import torch
from PIL import Image

from sailq.shared.errors import BadMedia, BadRequest, SailqError, TooLong
from sailq.shared.jobs import ModelCard
from sailq.shared.media.reading import sizing
from sailq.shared.media.sizing import Budget, Options
from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.model_paths import resolve

CARD = ModelCard(name="tiny", context=512, max_patches=1024, min_pixels=4 * 784, max_pixels=64 * 784)
CARDS = {"unknown": None, **oracle.CARDS}
"""Published models, and none."""


def attempt(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """The result, or None for a typed refusal; anything else fails the test."""
    try:
        return function(*given, **named)
    except SailqError:
        return None


def time_options(rng: random.Random, total: int, fps: float) -> dict[str, Any]:
    """Some options of time; some of them impossible for this clip."""
    seconds = total / fps
    choices: dict[str, Callable[[], Any]] = {
        "nframes": lambda: rng.choice([1, 2, 3, 4, 5, 7, 16, 63, total - 1, total, total + 2]),
        "fps": lambda: rng.choice([0, 0.1, 0.5, 1, 2.0, 3.7, 30, 1000.0]),
        "min_frames": lambda: rng.choice([0, 1, 2, 5, 16, 800]),
        "max_frames": lambda: rng.choice([0, 1, 2, 9, 64, 2000]),
        "video_start": lambda: rng.choice([0, 0.0, rng.uniform(0, seconds), seconds, 2 * seconds]),
        "video_end": lambda: rng.choice([0, rng.uniform(0, seconds), seconds, 3 * seconds]),
        "video_sample_num": lambda: rng.choice([1, 2, 3, 7, 1000]),
    }
    return {name: value() for name, value in choices.items() if rng.random() < 0.3}


def size_options(rng: random.Random) -> dict[str, Any]:
    choices: dict[str, Callable[[], float]] = {
        "resized_height": lambda: rng.choice([1, 14, 28, 140, 420, rng.randrange(1, 3000), 200_000]),
        "resized_width": lambda: rng.choice([1, 14, 28, 210, 630, rng.randrange(1, 3000), 200_000]),
        "min_pixels": lambda: rng.choice([0, 784, 3136, rng.randrange(1, 400_000), rng.randrange(1, 900_000)]),
        "max_pixels": lambda: rng.choice([1, 784, 12_544, 602_112, rng.randrange(1, 2_000_000), 10**9]),
        "total_pixels": lambda: rng.choice([1, 784, 20_480 * 784, rng.randrange(1, 10**7), 128_000 * 784 * 0.9]),
    }
    names = {name for name in choices if rng.random() < 0.3}
    if rng.random() < 0.2:
        names |= {"resized_height", "resized_width"}
    return {name: choices[name]() for name in sorted(names)}


def our_plan(
    total: int, fps: float, height: int, width: int, given: dict[str, Any], card: ModelCard | None
) -> tuple[Any, ...]:
    options = Options(**given)
    indices = sizing.frame_indices(options, total, fps, sizing.group_of(card))
    return indices, sizing.video_size(height, width, len(indices), options, card)


def test_smart_resize_equals_qwen_vl_utils() -> None:
    rng, refused = random.Random(0), 0
    for _ in range(3000):
        height, width = (rng.choice([rng.randrange(1, 200), rng.randrange(1, 9000)]) for _ in range(2))
        low = rng.choice([0, 1, 3136, rng.randrange(10**6)])
        high = rng.choice([1, 784, rng.randrange(1, 10**7)])
        factor = rng.choice([28, 56])
        try:
            expected = oracle.smart_resize(height, width, factor, low, high)
        except oracle.REFUSALS:
            expected = None
        ours = attempt(sizing.smart_resize, height, width, min_pixels=low, max_pixels=high, factor=factor)
        assert ours == expected, (height, width, low, high, factor)
        refused += ours is None
    assert 300 < refused < 2500


def test_frames_and_sizes_of_clips_equal_qwen_vl_utils() -> None:
    rng, refused = random.Random(1), 0
    for _ in range(2000):
        total = rng.choice([1, 2, 3, 5, rng.randrange(1, 100), rng.randrange(1, 100_000)])
        fps = rng.choice([1.0, 7.5, 12, 25, 30, 30000 / 1001, 59.94, rng.uniform(0.5, 120)])
        height, width = rng.choice([(240, 320), (1080, 1920), (rng.randrange(1, 3000), rng.randrange(1, 99))])
        given, model = time_options(rng, total, fps) | size_options(rng), rng.choice([*CARDS])
        expected = oracle.clip_plan(total, fps, height, width, given, oracle.patch_of(CARDS[model]))
        ours = attempt(our_plan, total, fps, height, width, given, CARDS[model])
        assert ours == expected, (total, fps, height, width, given, model)
        refused += ours is None
    print(f"\nfigure: frame numbers and sizes against qwen-vl-utils: 2000 clips equal, {refused} of them refusals")
    assert 300 < refused < 1700


def test_times_and_counts_equal_qwen_vl_utils_function_by_function() -> None:
    rng = random.Random(2)
    for _ in range(2000):
        total = rng.choice([rng.randrange(1, 50), rng.randrange(1, 9000)])
        fps = rng.choice([5.0, 24, 25, 29.97])
        given = time_options(rng, total, fps)
        for ours, theirs in (
            (sizing.frame_range, lambda *clip: oracle.calculate_video_frame_range(*clip)[:2]),
            (sizing.frame_count, oracle.smart_nframes),
        ):
            try:
                expected = theirs(given, total, fps)
            except oracle.REFUSALS:
                expected = None
            assert attempt(ours, Options(**given), total, fps) == expected, (total, fps, given)


def test_spread_is_torch_linspace_to_the_last_bit() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        first = rng.choice([0, rng.randrange(200_000)])
        last = first + rng.randrange(1, 200_000)
        count = rng.randrange(2, min(768, last - first + 1) + 1)
        assert sizing.spread(first, last, count) == torch.linspace(first, last, count).round().long().tolist()


@pytest.mark.parametrize("group", [1, 3, 4])
def test_a_model_with_other_groups_of_frames_gets_whole_ones(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such model is published; the arithmetic is qwen-vl-utils' with another constant."""
    monkeypatch.setattr(oracle.qwen, "FRAME_FACTOR", group)
    rng, refused = random.Random(5), 0
    for _ in range(1000):
        total, fps = rng.choice([rng.randrange(1, 50), rng.randrange(1, 9000)]), rng.choice([5.0, 24, 29.97])
        given = time_options(rng, total, fps) | size_options(rng)
        given.pop("video_sample_num", None)
        card = oracle.CARDS["qwen3-vl"].model_copy(update={"temporal_patch_size": group})
        ours = attempt(our_plan, total, fps, 240, 320, given, card)
        assert ours == oracle.clip_plan(total, fps, 240, 320, given, card.patch_size), (total, fps, given)
        refused += ours is None
    assert 100 < refused < 900
    assert Budget(card).check(group + 1, 64, 96) == 12


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_sizes_of_images_equal_qwen_vl_utils(card: ModelCard | None) -> None:
    rng, refused = random.Random(4), 0
    for _ in range(150):
        height, width = (rng.choice([rng.randrange(1, 60), rng.randrange(1, 1200)]) for _ in range(2))
        given = size_options(rng)
        if given.get("resized_height", 0) + given.get("resized_width", 0) > 10_000:
            continue  # PIL would allocate it
        expected = oracle.image_size(Image.new("RGB", (width, height)), given, oracle.patch_of(card))
        ours = attempt(sizing.image_size, height, width, Options(**given), card)
        assert ours == expected, (height, width, given)
        refused += ours is None
    assert 10 < refused < 140


def test_no_index_is_beyond_the_end_of_a_clip() -> None:
    for total in (2, 3, 99_999):
        indices = sizing.frame_indices(Options(fps=1000), total, 25)
        assert indices[0] == 0 and indices[-1] <= total - 1 and len(indices) % 2 == 0


@pytest.mark.parametrize(
    ("nframes", "stride", "expected"),
    [
        (8, 1, [0, 1, 3, 4, 5, 6, 8, 9]),
        (8, 2, [0, 3, 5, 8]),
        (6, 2, [0, 4]),  # three are left, and the pair counts
        (4, 3, [0, 9]),
        (4, 4, [0, 0]),  # one is left: it is its own pair
    ],
)
def test_video_sample_num_keeps_every_nth_frame_and_whole_pairs(
    nframes: int, stride: int, expected: list[int]
) -> None:
    assert sizing.frame_indices(Options(nframes=nframes, video_sample_num=stride), 10, 25) == expected


def test_a_card_gives_the_limits_that_a_message_leaves_open() -> None:
    assert sizing.image_size(2000, 2000, Options(), CARD) == (224, 224)
    assert sizing.image_size(2000, 2000, Options(max_pixels=784 * 100), CARD) == (280, 280)
    assert sizing.image_size(10, 10, Options(), CARD) == (56, 56)
    assert sizing.video_size(2000, 2000, 4, Options(), CARD) == (224, 224)
    assert sizing.video_size(10, 10, 4, Options(), CARD) == (56, 56)
    generous = CARD.model_copy(update={"max_pixels": 10**9})
    without = sizing.video_size(2000, 2000, 4, Options())
    assert sizing.video_size(2000, 2000, 4, Options(), generous) == without


@pytest.mark.parametrize("model", CARDS)
@pytest.mark.parametrize(("clip", "of_14", "of_16"), [
    ((252, 336), (280, 392), (320, 448)), ((10, 10), (336, 336), (384, 384)), ((320, 448), (308, 448), (320, 448)),
    ((2160, 3840), (560, 1008), (640, 1152)),
])
def test_a_videos_frame_has_at_least_128_tokens_by_default(
    model: str, clip: tuple[int, int], of_14: tuple[int, int], of_16: tuple[int, int]
) -> None:
    given, patch = {"nframes": 4}, oracle.patch_of(CARDS[model])
    expected = {14: of_14, 16: of_16}[patch]
    assert sizing.video_size(*clip, 4, Options(**given), CARDS[model]) == expected
    plan = oracle.clip_plan(100, 25.0, *clip, given, patch)
    assert plan is not None and plan[1] == expected


def test_the_least_in_a_published_processor_file_has_no_effect() -> None:
    """The recipes pass do_resize=False: 256 × 256 would be Qwen3-VL's processor's size of this image."""
    assert sizing.image_size(100, 100, Options(), oracle.CARDS["qwen3-vl"]) == (96, 96)
    assert oracle.image_size(Image.new("RGB", (100, 100)), {}, 16) == (96, 96)


def test_a_model_whose_files_state_sizes_of_their_own_has_them_for_videos_too() -> None:
    tiny = ModelSpec.load(resolve("sailq-tiny")).card(2048, None, "")
    assert tiny.min_pixels == 84 * 84
    assert sizing.video_size(252, 336, 4, Options(), tiny) == (84, 112)
    assert sizing.video_size(10, 10, 4, Options(), tiny) == (84, 84)
    assert sizing.video_size(252, 336, 4, Options(), CARD) == (168, 252)  # its maximum is less than 128 tokens
    assert sizing.video_size(252, 336, 4, Options(min_pixels=784), oracle.CARDS["qwen2.5-vl"]) == (252, 336)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: sizing.image_size(1, 4000, Options()), BadMedia),
        (lambda: sizing.image_size(30, 5000, Options(max_pixels=50_000)), BadMedia),
        (lambda: sizing.image_size(100, 100, Options(min_pixels=9000, max_pixels=8000)), BadRequest),
        (lambda: sizing.image_size(100, 100, Options(resized_height=1, resized_width=4000)), BadRequest),
        (lambda: sizing.frame_indices(Options(nframes=12), 10, 25), BadRequest),
        (lambda: sizing.frame_indices(Options(nframes=4, fps=2), 10, 25), BadRequest),
        (lambda: sizing.frame_indices(Options(video_start=0.4), 10, 25), BadRequest),
        (lambda: sizing.frame_indices(Options(), 0, 25), BadMedia),
        (lambda: sizing.frame_indices(Options(), 1, 25), BadMedia),
        (lambda: sizing.frame_indices(Options(), 10, 0), BadMedia),
        (lambda: sizing.frame_indices(Options(), 10, float("nan")), BadMedia),
    ],
)
def test_refusals_have_their_own_type(call: Callable[[], Any], error: type[SailqError]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_budget_counts_tokens_of_pairs_and_of_images() -> None:
    budget = Budget(CARD)
    budget.spend(1, 56, 84)
    assert budget.tokens == 6
    budget.spend(4, 56, 84)
    assert budget.tokens == 18
    assert budget.check(2, 280, 280) == 100 and budget.tokens == 18


@pytest.mark.parametrize(
    ("size", "error", "told"),
    [
        ((2, 28 * 16, 28 * 17), TooLong, "1088 patches"),
        ((1, 28 * 16, 28 * 16), TooLong, "256 vision tokens"),
        ((770, 28, 28), BadRequest, "768 frames"),
        ((1, 28, 8204), BadRequest, "8192 pixels"),
        ((1, 28, 32), BadRequest, "multiples of 28"),
    ],
)
def test_a_budget_refuses_what_the_model_cannot_hold(
    size: tuple[int, int, int], error: type[SailqError], told: str
) -> None:
    budget = Budget(CARD.model_copy(update={"context": 255}))
    with pytest.raises(error, match=told):
        budget.check(*size)


def test_a_budget_counts_the_models_own_tokens() -> None:
    budget = Budget(oracle.CARDS["qwen3-vl"])
    assert budget.check(2, 64, 96) == 6
    with pytest.raises(BadRequest, match="multiples of 32"):
        budget.check(2, 56, 84)


def test_the_context_is_shared_by_all_media() -> None:
    budget = Budget(CARD.model_copy(update={"context": 200}))
    budget.spend(2, 280, 280)
    budget.spend(2, 280, 280)
    with pytest.raises(TooLong, match="201 vision tokens"):
        budget.spend(1, 28, 28)


def test_without_a_card_a_medium_may_fill_any_context_and_no_more() -> None:
    Budget().check(768, 28 * 18, 28 * 18)
    with pytest.raises(TooLong, match="128000"):
        Budget().check(768, 28 * 18, 28 * 19)
