"""Qwen2-VL over a runner: host work of a request, its start in a slot, and one decode step for all slots."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...shared.errors import BadMedia, BadRequest, TooLong, Unsupported
from ...shared.frames import Frames
from ...shared.jobs import FinishReason, FramesPart, GenerationOptions, Message, ModelCard, Usage
from ..runners.base import Runner
from .model import ModelSpec
from .mrope import rope_index
from .patches import Grid, patchify
from .prompt import Prompter
from .sampling import Sampler
from .text import TextStream


@dataclass(frozen=True)
class Prepared:
    """A request's host work, done: all that the device needs.

    Attributes:
        tokens: int32 [L].
        positions: int32 [3, L].
        delta: added to a later token's place for its position.
        places: int32 [V], where the vision tokens are.
        media: (patches uint8 [t·h·w, 1176], (t, h, w)) of each image and video, in order.
        limit: most tokens of the answer, by the options and by the context.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    delta: int
    places: npt.NDArray[np.int32]
    media: tuple[tuple[Frames, Grid], ...]
    limit: int


@dataclass
class Generation:
    """One answer in the making, in a slot. Times are seconds of `time.monotonic`.

    Attributes:
        tokens: what was chosen so far, the end token included.
        delta: text that the last token made certain.
        finish_reason: None while it goes on.
        error: why the last logits could not be used; the generation is then over.
    """

    prepared: Prepared
    slot: int
    sampler: Sampler
    stream: TextStream
    vision_encode: float
    prefill: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    tokens: list[int] = field(default_factory=list)
    delta: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.prepared.tokens),
            vision_tokens=len(self.prepared.places),
            completion_tokens=len(self.tokens),
        )


class Engine:
    """One model on one runner. `prepare` may be called from any thread, everything else from one only."""

    loads: ClassVar[int] = 0
    """Models that this process has loaded: 1 in a worker, however many jobs it served."""

    def __init__(self, spec: ModelSpec, runner: Runner, prompter: Prompter) -> None:
        self.runner = runner
        self.card: ModelCard = spec.card(runner.context, runner.max_patches)
        self._spec, self._prompter = spec, prompter

    @classmethod
    def load(
        cls, model_dir: Path, device: str = "cpu", *, bmodel: Path | None = None, slots: int | None = None,
        threads: int | None = None,
    ) -> Engine:
        """The model in a directory, on a device: see `runners.devices.open_runner`.

        Raises:
            Unsupported: no such directory or device, or not a model that this engine and its runner can serve.
        """
        from ..runners.devices import open_runner  # which imports this package

        spec = ModelSpec.load(model_dir)
        cls.loads += 1
        runner = open_runner(spec, device, bmodel=bmodel, slots=slots, threads=threads)
        return cls(spec, runner, Prompter(spec))

    @property
    def slots(self) -> int:
        return self.runner.slots

    @property
    def device(self) -> str:
        """What runs the model, for people to read."""
        return self.runner.device

    def media(self, messages: Sequence[Message]) -> tuple[list[FramesPart], list[Grid], list[int]]:
        """The media, their grids and their numbers of tokens, by what the messages state of them.

        For those who fetch frames, too: what this refuses may be too large to decode.

        Raises:
            BadRequest, TooLong: as `prepare`.
        """
        parts = [part for message in messages for part in message.content if isinstance(part, FramesPart)]
        grids = [self._grid(part) for part in parts]
        counts = [t * h * w // self._spec.merge_size**2 for t, h, w in grids]
        if sum(counts) >= self.runner.context:
            raise TooLong(
                f"The prompt's media have {sum(counts)} vision tokens; the model's context of "
                f"{self.runner.context} must also hold its text and at least one token of answer."
            )
        return parts, grids, counts

    def prepare(
        self, messages: Sequence[Message], frames: Mapping[str, Frames], options: GenerationOptions
    ) -> Prepared:
        """Tokens, positions and patches of a request.

        Args:
            messages: the conversation, the finished turns included.
            frames: uint8 [n, height, width, 3] RGB by blob digest.

        Raises:
            BadRequest, BadMedia: messages and frames break the contract.
            TooLong: the prompt leaves no room for an answer, or it or a frame is too large for the runner.
            Unsupported: the runner cannot sample.
        """
        spec = self._spec
        parts, grids, counts = self.media(messages)
        tokens, vision = self._prompter.encode(messages, counts)
        context = self.runner.context
        if len(tokens) + 1 > context:
            raise TooLong(
                f"The prompt has {len(tokens)} tokens, {sum(counts)} of them vision; the model's context of "
                f"{context} must also hold at least one token of answer."
            )
        if len(tokens) > self.runner.longest_prompt:
            raise TooLong(
                f"The prompt has {len(tokens)} tokens, {sum(counts)} of them vision; this worker's limit is "
                f"{self.runner.longest_prompt}."
            )
        if self.runner.greedy_only and (options.temperature > 0 or options.repetition_penalty != 1):
            raise Unsupported(
                "This worker's model file chooses each token itself, the likeliest: it takes temperature 0 and "
                "repetition_penalty 1 only."
            )
        positions, delta = rope_index(vision, grids, spec.merge_size)
        media = tuple(
            patchify(_frames(part, frames), spec.patch_size, spec.merge_size, spec.temporal_patch_size)
            for part in parts
        )
        return Prepared(
            tokens, positions, delta, np.flatnonzero(vision).astype(np.int32), media,
            min(options.max_new_tokens, context - len(tokens)),
        )

    def start(self, prepared: Prepared, options: GenerationOptions, slot: int) -> Generation:
        """Encode the vision, prefill the slot, choose the first token. What the runner raises passes."""
        began = time.monotonic()
        vision = [self.runner.vision(patches, grid) for patches, grid in prepared.media]
        encoded = time.monotonic()
        embeds = np.concatenate([np.empty((0, self.runner.hidden), np.float32), *vision])
        logits = self.runner.prefill(slot, prepared.tokens, prepared.positions, embeds, prepared.places)
        generation = Generation(
            prepared, slot, Sampler(options, prepared.tokens),
            TextStream(self._prompter.tokenizer, options.stop), encoded - began,
        )
        self._accept(generation, logits)
        generation.first_token_at = generation.last_token_at
        generation.prefill = generation.first_token_at - encoded
        if generation.error is not None:
            raise generation.error
        return generation

    def step(self, generations: Sequence[Generation]) -> None:
        """One token for each of these unfinished generations. What the runner raises passes."""
        tokens = np.array([g.tokens[-1] for g in generations], np.int32)
        # The token to feed has the place after all that are cached: the prompt and the earlier tokens.
        places = [len(g.prepared.tokens) + len(g.tokens) - 1 + g.prepared.delta for g in generations]
        positions = np.tile(np.array(places, np.int32), (3, 1))
        logits = self.runner.decode([g.slot for g in generations], tokens, positions)
        for generation, row in zip(generations, logits, strict=True):
            self._accept(generation, row)

    def release(self, slot: int) -> None:
        """The slot's generation is over."""
        self.runner.release(slot)

    def _accept(self, generation: Generation, logits: npt.NDArray[np.float32]) -> None:
        """Choose a token, and see what it means for the text and for the end."""
        try:
            token = generation.sampler.choose(logits)
            generation.tokens.append(token)
            generation.last_token_at = time.monotonic()
            stream = generation.stream
            ended = token in self._spec.eos_token_ids
            generation.delta = "" if ended else stream.push(token)
            if ended or stream.stopped:
                generation.finish_reason = "stop"
            elif len(generation.tokens) == generation.prepared.limit:
                generation.finish_reason = "length"
            if generation.finish_reason is not None:
                generation.delta += stream.finish()
        except Exception as error:  # this request's own; the others of the batch go on
            generation.error = error

    def _grid(self, part: FramesPart) -> Grid:
        """The part's grid, checked against the model and the runner."""
        spec, most = self._spec, self.runner.max_patches
        if part.type == "image" and part.frames != 1:
            raise BadRequest(f"An image has one frame, not {part.frames}.")
        unit = spec.patch_size * spec.merge_size
        if part.height % unit or part.width % unit:
            raise BadRequest(f"A frame of {part.width} × {part.height} is no multiple of {unit} pixels.")
        h, w = part.height // spec.patch_size, part.width // spec.patch_size
        if most is not None and h * w > most:
            raise TooLong(
                f"A frame of {part.width} × {part.height} has {h * w} patches; this worker's limit is {most}."
            )
        return -(-part.frames // spec.temporal_patch_size), h, w


def _frames(part: FramesPart, frames: Mapping[str, Any]) -> Frames:
    """The part's frames, checked to be those that it states."""
    array = frames.get(part.blob)
    if array is None:
        raise BadMedia(f"The frames of blob {part.blob[:12]} are not there.")
    if array.dtype != np.uint8 or array.shape != (part.frames, part.height, part.width, 3):
        raise BadMedia(f"The frames of blob {part.blob[:12]} are not those that the message states.")
    return np.asarray(array)
