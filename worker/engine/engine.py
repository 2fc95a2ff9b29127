"""Runs a model on a runner: starts a request in a slot, and decodes one token for all slots per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from sailq.shared.devices import CPU
from sailq.shared.errors import DeviceFailed
from sailq.shared.frames import Frames
from sailq.shared.jobs import GenerationOptions, Message, ModelCard

from ..model_files.model_paths import fingerprint
from ..runners.base import Prompt, Runner, nothing
from ..runners.devices import only_bmodel, open_runner
from ..runners.logits import UNUSABLE, Logits
from ..runners.packing import vision_calls
from ..runners.sensors import Readings
from .chat_tokenizer import ChatTokenizer
from .generation import Generation
from .grammars import Grammars
from .guides import MaskWriter
from .masks import Ends
from .model import ModelSpec
from .patches import Grid
from .preprocessor import EncodedMedium, Media, PreparedPrompt, Preprocessor
from .sampling import NotFinite, Sampler
from .text import AnswerStream, ThoughtMarks
from .vision_cache import Embeds, Key, VisionCache

VISION_CACHE_BYTES = 128 * 2**20
"""Enough for about 230 clips of 40 vision tokens of a 7B model."""


class Start(NamedTuple):
    """A request that is to start in a free slot."""

    prepared: PreparedPrompt
    options: GenerationOptions
    slot: int


class Engine:
    """One model on one runner. `media`, `prepare` and `readings` may be called from any thread, all else from one only.

    Attributes:
        vision_cache: the vision tokens of the media used last.
        device_seconds: seconds spent in the runner's calls since the model was loaded.
        device_call: the name of the runner's call in progress and its start (`time.monotonic`); None between calls.
    """

    loads: ClassVar[int] = 0
    """The number of models that this process has loaded; 1 in a worker."""

    def __init__(
        self, spec: ModelSpec, runner: Runner, chat_tokenizer: ChatTokenizer,
        vision_cache_bytes: int = VISION_CACHE_BYTES, version: str = "",
    ) -> None:
        self.runner = runner
        self.vision_cache = VisionCache(vision_cache_bytes)
        self.device_seconds = 0.0
        self.device_call: tuple[str, float] | None = None
        self.card: ModelCard = spec.card(runner.context, runner.max_patches, version, runner.greedy_only)
        self._spec, self._chat_tokenizer = spec, chat_tokenizer
        ends = Ends(chat_tokenizer.end_tokens, spec.vocab_size)
        grammars = Grammars(chat_tokenizer.tokenizer, spec.vocab_size, ends)
        self._preprocessor = Preprocessor(spec, runner, chat_tokenizer, self.vision_cache, grammars)
        self._masks = MaskWriter(runner.slots, ends.words)

    @classmethod
    def load(
        cls, model_dir: Path, device: str = "cpu", *, bmodel: Path | None = None, slots: int | None = None,
        threads: int | None = None, vision_cache_bytes: int = VISION_CACHE_BYTES,
    ) -> Engine:
        """Loads a directory's model on a device; see `runners.devices.open_runner`. `vision_cache_bytes`: size of the
        vision cache in the host's memory; 0 disables it.

        Raises:
            Unsupported: no such directory or device, or not a model that this engine and its runner can serve.
        """
        spec = ModelSpec.load(model_dir)
        cls.loads += 1
        runner = open_runner(spec, device, bmodel=bmodel, slots=slots, threads=threads)
        file = None if device == CPU else bmodel or only_bmodel(model_dir)
        return cls(spec, runner, ChatTokenizer(spec), vision_cache_bytes, fingerprint(model_dir, file))

    @property
    def slots(self) -> int:
        return self.runner.slots

    @property
    def device(self) -> str:
        """The name of what runs the model, for people to read."""
        return self.runner.device

    def readings(self) -> Readings | None:
        """See `Runner.readings`."""
        return self.runner.readings()

    def media(self, messages: Sequence[Message]) -> Media:
        """See `Preprocessor.media`."""
        return self._preprocessor.media(messages)

    def prepare(
        self, messages: Sequence[Message], frames: Mapping[str, Frames], options: GenerationOptions,
        media: Media | None = None,
    ) -> PreparedPrompt:
        """See `Preprocessor.prepare`."""
        return self._preprocessor.prepare(messages, frames, options, media)

    def together(self, prompts: Sequence[PreparedPrompt]) -> int:
        """How many of the first waiting prompts `start_together` should get in one call; at least 1."""
        return self.runner.together([len(prompt.tokens) for prompt in prompts])

    def start(self, prepared: PreparedPrompt, options: GenerationOptions, slot: int) -> Generation:
        """`start_together` of one request. Raises what it returns as the reason of a failure."""
        (result,) = self.start_together([Start(prepared, options, slot)])
        if isinstance(result, Exception):
            raise result
        return result

    def start_together(self, starts: Sequence[Start]) -> list[Generation | Exception]:
        """Encode the media of requests, prefill their slots and choose their first tokens.

        Returns:
            For each request its generation, or the reason why it could not start. A failure ends only its own request.

        Raises:
            DeviceFailed: the device failed.
        """
        try:
            return self._start(starts)
        except DeviceFailed:
            raise
        except Exception as error:
            if len(starts) == 1:
                return [error]
            return [result for start in starts for result in self.start_together([start])]

    def _start(self, starts: Sequence[Start]) -> list[Generation | Exception]:
        """Errors of the runner pass through."""
        began = time.monotonic()
        vision, new = self._encode(medium for start in starts for medium in start.prepared.media)
        encoded = time.monotonic()
        generations: list[Generation] = []
        prompts: list[Prompt] = []
        chat = self._chat_tokenizer
        for prepared, options, slot in starts:
            keys = [medium.key for medium in prepared.media]
            generations.append(Generation(
                prepared, slot, Sampler(options, prepared.tokens),
                AnswerStream(chat.tokenizer, options.stop, chat.end_tokens, _marks(chat.thought, prepared)),
                None if prepared.grammar is None else prepared.grammar.guide(), encoded - began,
                reused=len(keys) - len(new.intersection(keys)),
                thinking=chat.thought is not None and chat.thought.opened,
            ))
            new.difference_update(keys)  # the next request with the same medium reuses it
            if vision.keys() >= set(keys):
                none = np.empty((0, 1 + self._spec.family.deepstack, self.runner.hidden), np.float32)
                embeds = np.concatenate([none, *(vision[key] for key in keys)])
                prompts.append(Prompt(slot, prepared.tokens, prepared.positions, embeds, prepared.places))
            else:
                generations[-1].error = NotFinite("vision tokens")
        usable = [generation for generation in generations if generation.error is None]
        if usable:
            with self._on_device("prefill"):
                logits = self.runner.prefill(prompts)
            self._accept(usable, logits)
        for generation in usable:
            generation.first_token_at = generation.last_token_at
            generation.prefill = generation.first_token_at - encoded
        return [generation if generation.error is None else generation.error for generation in generations]

    def step(self, generations: Sequence[Generation], meanwhile: Callable[[], None] = nothing) -> None:
        """Decode one token for each of these unfinished generations. Errors of the runner pass through.

        Args:
            meanwhile: see `Runner.decode`.
        """
        tokens = np.array([g.tokens[-1] for g in generations], np.int32)
        # The token to feed comes after all cached ones: the prompt and the earlier tokens.
        places = [len(g.prepared.tokens) + len(g.tokens) - 1 + g.prepared.rope_delta for g in generations]
        positions = np.array([places] * 3, np.int32)
        guides = [g.guide for g in generations if g.guide is not None]

        def begin() -> None:
            self._masks.begin(guides)
            meanwhile()

        with self._on_device("decode"):
            logits = self.runner.decode(
                [g.slot for g in generations], tokens, positions, begin if guides else meanwhile
            )
        self._masks.finish()
        self._accept(generations, logits)

    def release(self, slot: int) -> None:
        """Free the slot of a generation that is over."""
        self.runner.release(slot)

    @contextmanager
    def _on_device(self, call: str) -> Iterator[None]:
        began = time.monotonic()
        self.device_call = call, began
        try:
            yield
        finally:
            self.device_call = None
            self.device_seconds += time.monotonic() - began

    def _encode(self, media: Iterable[EncodedMedium]) -> tuple[dict[Key, Embeds], set[Key]]:
        """The vision tokens of media, float32 [V, 1 + D, H], from the cache or else from the runner, and the media that
        the runner got. Vision tokens that are not finite are left out."""
        vision: dict[Key, Embeds] = {}
        wanted: dict[Key, tuple[Frames, Grid]] = {}
        for medium in media:
            known = medium.embeds if medium.patches is None else self.vision_cache.get(medium.key)
            if known is not None:
                vision[medium.key] = known
            elif medium.patches is not None:
                wanted[medium.key] = medium.patches, medium.grid
        keys, pixels = list(wanted), list(wanted.values())
        for part in vision_calls([t for _, (t, _, _) in pixels]):
            with self._on_device("vision"):
                made = self.runner.vision(pixels[part])
            for key, embeds in zip(keys[part], made, strict=True):
                if np.isfinite(embeds).all():
                    vision[key] = embeds
                    self.vision_cache.put(key, embeds)
        return vision, set(wanted)

    def _accept(self, generations: Sequence[Generation], logits: Logits) -> None:
        """Choose each generation's token. Unusable logits end only their own generation, with an error."""
        argmax: list[int] | None = None
        if any(map(_needs_argmax, generations)):
            with self._on_device("choose"):
                argmax = logits.argmax().tolist()
        now = time.monotonic()
        for index, generation in enumerate(generations):
            try:
                token = None
                if argmax is not None and _needs_argmax(generation):
                    token = _token_by_argmax(generation, argmax[index])
                if token is None:
                    with self._on_device("read logits"):
                        row = logits.row(index)
                    guide = generation.guide
                    token = generation.sampler.sample(row, None if guide is None else guide.mask.tokens)
                    now = time.monotonic()
                self._append(generation, token, now)
            except DeviceFailed:
                raise
            except NotFinite as error:
                with self._on_device("clear"):  # otherwise the NaNs would reach the slot's next request
                    self.runner.clear(generation.slot)
                generation.error = error
            except Exception as error:
                generation.error = error

    def _append(self, generation: Generation, token: int, now: float) -> None:
        """Add a token to a generation, and end it if the token, its guide or the limit says so."""
        guide, thought = generation.guide, self._chat_tokenizer.thought
        if guide is not None:
            guide.accept(token)
        if thought is not None and generation.thinking:
            if generation.form is not None and token in self._chat_tokenizer.end_tokens:
                token = thought.end  # the answer in its form is still to come
            generation.thinking = token != thought.end
        generation.inter_token_latency = now - generation.last_token_at if generation.tokens else None
        generation.tokens.append(token)
        generation.last_token_at = now
        if token in self._chat_tokenizer.end_tokens or (guide is not None and guide.over):
            generation.finish_reason = "stop"
        elif len(generation.tokens) == generation.prepared.limit:
            generation.finish_reason = "length"


def _marks(thought: ThoughtMarks | None, prepared: PreparedPrompt) -> ThoughtMarks | None:
    """The marks that divide an answer. Unless the prompt opens the thought, an answer in a form has none: its form does
    not allow `<think>`."""
    if thought is None or thought.opened or prepared.grammar is None:
        return thought
    return None


def _needs_argmax(generation: Generation) -> bool:
    """Whether its next token comes from the argmax, or is forced: the argmax tells that the scores are finite."""
    return generation.sampler.greedy or (generation.guide is not None and generation.guide.forced is not None)


def _token_by_argmax(generation: Generation, argmax: int) -> int | None:
    """The next token, or None if the scores must be read. An allowed argmax is also that of the allowed tokens."""
    if argmax == UNUSABLE:
        raise NotFinite("logits")
    if (guide := generation.guide) is None:
        return argmax
    if guide.forced is not None:
        generation.sampler.accept(guide.forced)
        return guide.forced
    return argmax if guide.mask.allows(argmax) else None
