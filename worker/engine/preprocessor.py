"""Does a request's work on the host: tokens, positions and patches. It runs while the device is busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sailq.shared.errors import BadMedia, BadRequest, TooLong
from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, media_parts

from ..runners.base import Runner
from .chat_tokenizer import ChatTokenizer
from .grammars import Grammar, Grammars
from .model import ModelSpec
from .patches import Grid
from .vision_cache import Embeds, Key, VisionCache, key_of


@dataclass(frozen=True)
class EncodedMedium:
    """An image or video for the model. Exactly one of `patches` and `embeds` is set.

    Attributes:
        grid: (t, h, w) in patches.
        patches: uint8 [t·h·w, P].
        embeds: float32 [V, 1 + D, H] (see `Runner.vision`), if the medium was encoded before.
    """

    key: Key
    grid: Grid
    patches: Frames | None
    embeds: Embeds | None


@dataclass(frozen=True)
class Media:
    """The media of messages, in order, and the vision tokens of those that the vision cache holds.

    Attributes:
        vision_tokens: number of vision tokens of all media together.
        embeds: float32 [V, 1 + D, H] of each medium that was encoded before, else None.
    """

    parts: list[FramesPart]
    grids: list[Grid]
    vision_tokens: int
    embeds: list[Embeds | None]

    @property
    def wanted(self) -> dict[str, FramesPart]:
        """The parts whose frames `prepare` needs, by blob digest."""
        return {part.blob: part for part, embeds in zip(self.parts, self.embeds, strict=True) if embeds is None}


@dataclass(frozen=True)
class PreparedPrompt:
    """A request after its work on the host: all that the device needs.

    Attributes:
        tokens: int32 [L].
        positions: int32 [3, L].
        rope_delta: added to a later token's place for its position.
        places: int32 [V], the indices of the vision tokens in `tokens`.
        media: the prompt's media, in order.
        limit: most tokens of the answer, by the options and the context. Its last token needs no row of the cache.
        grammar: the form that the answer must have; None if it is free.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    rope_delta: int
    places: npt.NDArray[np.int32]
    media: tuple[EncodedMedium, ...]
    limit: int
    grammar: Grammar | None = None


class Preprocessor:
    """The host's part of an engine. May be used from any thread."""

    def __init__(
        self, spec: ModelSpec, runner: Runner, chat_tokenizer: ChatTokenizer, vision_cache: VisionCache,
        grammars: Grammars,
    ) -> None:
        """`runner`: for its limits alone."""
        self._family, self._runner, self._grammars = spec.family, runner, grammars
        self._chat_tokenizer, self._vision_cache = chat_tokenizer, vision_cache

    def media(self, messages: Sequence[Message]) -> Media:
        """Read what the messages state about their media.

        Call this before fetching frames: media that it refuses may be too large to decode.

        Raises:
            BadRequest, TooLong: as `prepare`.
        """
        parts = media_parts(messages)
        grids = [self._grid(part) for part in parts]
        vision_tokens = sum(self._family.vision_tokens(grid) for grid in grids)
        if vision_tokens >= self._runner.context:
            raise TooLong(
                f"The prompt's media have {vision_tokens} vision tokens; the model's context of "
                f"{self._runner.context} must also hold its text and at least one token of answer."
            )
        return Media(parts, grids, vision_tokens, [self._vision_cache.get(key_of(part)) for part in parts])

    def prepare(
        self, messages: Sequence[Message], frames: Mapping[str, Frames], options: GenerationOptions,
        media: Media | None = None,
    ) -> PreparedPrompt:
        """Tokens, positions and patches of a request, and the grammar of its answer.

        Args:
            messages: the conversation, the finished turns included.
            frames: uint8 [n, height, width, 3] RGB by blob digest.
            media: the result of `media` for these messages, if only the frames in its `wanted` were fetched.

        Raises:
            BadRequest, BadMedia: messages and frames break the contract, or the answer's form cannot be compiled.
            TooLong: the prompt leaves no room for an answer, or it or a frame is too large for the runner.
            Unsupported: the runner cannot sample or guide.
        """
        if self._runner.greedy_only:
            options.refuse_greedy_only()
        form = options.structured_outputs
        grammar = None if form is None else self._grammars.compile(form)
        media = media or self.media(messages)
        tokens, vision = self._chat_tokenizer.encode(messages)
        context = self._runner.context
        if len(tokens) + 1 > context:
            raise TooLong(
                f"The prompt has {len(tokens)} tokens, {media.vision_tokens} of them vision; the model's context of "
                f"{context} must also hold at least one token of answer."
            )
        if len(tokens) > self._runner.longest_prompt:
            raise TooLong(
                f"The prompt has {len(tokens)} tokens, {media.vision_tokens} of them vision; this worker's limit is "
                f"{self._runner.longest_prompt}."
            )
        positions, delta = self._family.positions(vision, media.parts)
        if (most := int(positions.max())) >= self._runner.positions:
            raise TooLong(
                f"The prompt's media last too long: the prompt reaches position {most}; this worker's limit is "
                f"{self._runner.positions - 1}."
            )
        # The last token is never fed, so it needs neither a row of the cache nor a position.
        room = min(context, self._runner.positions - delta) - len(tokens) + 1
        return PreparedPrompt(
            tokens, positions, delta, np.flatnonzero(vision).astype(np.int32),
            tuple(self._medium(*one, frames) for one in zip(media.parts, media.grids, media.embeds, strict=True)),
            min(options.max_new_tokens, room),
            grammar,
        )

    def _medium(
        self, part: FramesPart, grid: Grid, embeds: Embeds | None, frames: Mapping[str, Frames]
    ) -> EncodedMedium:
        if embeds is not None:
            return EncodedMedium(key_of(part), grid, None, embeds)
        return EncodedMedium(key_of(part), grid, self._family.patches(_frames(part, frames)), None)

    def _grid(self, part: FramesPart) -> Grid:
        """The part's grid, checked against the model and the runner."""
        most, side = self._runner.max_patches, self._runner.max_side
        if part.type == "image" and part.frames != 1:
            raise BadRequest(f"An image has one frame, not {part.frames}.")
        t, h, w = self._family.grid(part)
        if most is not None and h * w > most:
            raise TooLong(
                f"A frame of {part.width} × {part.height} has {h * w} patches; this worker's limit is {most}."
            )
        if side is not None and max(h, w) > side:
            raise TooLong(
                f"A frame of {part.width} × {part.height} has a side of {max(h, w)} patches; this worker's limit is "
                f"{side}."
            )
        return t, h, w


def _frames(part: FramesPart, frames: Mapping[str, Any]) -> Frames:
    """The part's frames. Raises BadMedia if they are missing or differ from what the part states."""
    array = frames.get(part.blob)
    if array is None:
        raise BadMedia(f"The frames of blob {part.blob[:12]} are missing.")
    if array.dtype != np.uint8 or array.shape != (part.frames, part.height, part.width, 3):
        raise BadMedia(f"The frames of blob {part.blob[:12]} are not those that the message states.")
    return np.asarray(array)
