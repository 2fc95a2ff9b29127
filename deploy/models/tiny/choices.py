"""Teaches the model to choose: among words, and among the values of JSON.

A guided answer begins with a token that the model would never choose by itself, such as `red` in place of `It is red.`.
So each row here is a question with the text of a guided answer, and the loss compares, at each token of a value, only
those tokens that the guide would allow. What the model says by itself is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from sailq.producer.samples import COLOURS, MOTIONS, SHAPES, talk
from sailq.producer.samples.scene import Scene
from sailq.producer.samples.talk import COLOUR_ZH, LANGS, MOTION_EN, MOTION_ZH, SHAPE_ZH, Lang

from .batches import Batch, Exchange, Teacher, Writer, pack
from .network import FIRST_SPECIAL
from .pool import Entry
from .vocabulary import SIZE

Piece = str | tuple[str, tuple[str, ...]]
"""Text that a guide forces, or a value and all values that it allows."""
_MOVES: dict[Lang, tuple[str, ...]] = {
    "en": ("Does it move?", "Does the object move?", "Is it moving?", "Is the object moving?"),
    "zh": ("它在动吗?", "它移动吗?", "物体在移动吗?", "它动了吗?"),
}
_YES_NO: tuple[tuple[str, str], ...] = (("yes", "no"), ("Yes", "No"), ("是", "否"), ("true", "false"))
_KEYS = {"shape": ("shape", "object", "形状"), "colour": ("colour", "color", "颜色"),
         "motion": ("motion", "direction", "movement", "运动"), "moves": ("moving", "moves", "移动")}


@dataclass
class Choices:
    """Rows with guided answers.

    Attributes:
        batch: the rows; their targets are not used.
        rows, columns: int64 [n], the places whose next token is a part of a value.
        wanted: int64 [n], this token.
        allowed: bool [n, vocabulary], the tokens that a guide allows there.
    """

    batch: Batch
    rows: Tensor
    columns: Tensor
    wanted: Tensor
    allowed: Tensor


class Chooser:
    """Draws questions about media and guided answers to them."""

    def __init__(self, seed: int, teacher: Teacher, writer: Writer, folder: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.teacher, self.writer = teacher, writer
        words = _token_bytes(folder)

        @lru_cache(maxsize=20_000)
        def allowed(rests: tuple[bytes, ...]) -> NDArray[np.bool_]:
            begins = {rest[:end] for rest in rests for end in range(1, len(rest) + 1)}
            return np.array([word in begins for word in words])

        self.words, self.allowed = words, allowed

    def draw(self, count: int) -> Choices:
        """So many rows about media of one size."""
        grid = self.teacher.grid()
        talks: list[list[Exchange]] = []
        answers: list[list[Piece]] = []
        for _ in range(count):
            video = bool(self.rng.random() < 0.7)
            entry = self.teacher.medium(grid, video=video)
            question, pieces = self._asked(entry)
            text = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
            talks.append([((entry,), question, text)])
            answers.append(pieces)
        batch = pack(self.writer, talks)
        places = [place for row, pieces in enumerate(answers) for place in self._places(row, talks[row], pieces)]
        rows, columns, wanted = (torch.tensor([place[at] for place in places]) for at in range(3))
        return Choices(batch, rows, columns, wanted, torch.from_numpy(np.stack([place[3] for place in places])))

    def _places(
        self, row: int, exchanges: Sequence[Exchange], pieces: Sequence[Piece]
    ) -> list[tuple[int, int, int, NDArray[np.bool_]]]:
        """(row, column, next token, allowed tokens) of each token of a value that has alternatives."""
        answer = list(self.writer.encode(exchanges[-1][2]))
        tokens, _, _ = self.writer.row(exchanges)
        first = len(tokens) - len(answer) - 1 - len(self.writer.encode("\n"))
        assert tokens[first : first + len(answer)] == answer
        spans, end = [], 0
        for piece in pieces:
            text = piece if isinstance(piece, str) else piece[0]
            begin, end = end, end + len(text.encode())
            if not isinstance(piece, str):
                spans.append((begin, end, [one.encode() for one in piece[1]]))
        found, at = [], 0
        for number, token in enumerate(answer):
            word = self.words[token]
            for begin, end, values in spans:
                if begin <= at and at + len(word) <= end:
                    said = b"".join(self.words[one] for one in answer)[begin:at]
                    rests = sorted({value[len(said):] for value in values if value.startswith(said)} - {b""})
                    allowed = self.allowed(tuple(rests))
                    if allowed.sum() > 1:
                        found.append((row, first + number - 1, token, allowed))
            at += len(word)
        return found

    def _asked(self, entry: Entry) -> tuple[str, list[Piece]]:
        rng, scene = self.rng, entry.scene
        lang: Lang = LANGS[rng.integers(2)]
        topics = ["shape", "colour", *(["motion", "moves"] if entry.is_video else [])]
        if rng.random() < 0.35:
            asked = [str(topic) for topic in rng.permutation(topics)[: rng.integers(1, len(topics) + 1)]]
            about = [*asked, "describe_video" if entry.is_video else "describe_image"]
            return self._question(lang, str(rng.choice(about)), scene), self._object(asked, scene, lang)
        topic = str(rng.choice(topics))
        return self._question(lang, topic, scene), [self._value(topic, scene, lang)]

    def _question(self, lang: Lang, topic: str, scene: Scene) -> str:
        if topic == "moves":
            return str(self.rng.choice(_MOVES[lang]))
        return talk.about(self.rng, lang, topic, scene)[0]

    def _object(self, topics: Sequence[str], scene: Scene, lang: Lang) -> list[Piece]:
        pieces: list[Piece] = []
        for number, topic in enumerate(topics):
            key = str(self.rng.choice(_KEYS[topic]))
            pieces.append(f'{", " if number else "{"}"{key}":')
            if topic == "moves":  # a token of the value begins with the blank
                pieces.append((" false" if scene.motion == "still" else " true", (" true", " false")))
            else:
                pieces += [' "', self._value(topic, scene, lang), '"']
        return [*pieces, "}"]

    def _value(self, topic: str, scene: Scene, lang: Lang) -> Piece:
        """The true value, and some or all of the others, in one of the ways in which people write them."""
        rng = self.rng
        if topic == "moves":
            yes, no = _YES_NO[rng.integers(len(_YES_NO))]
            return (no if scene.motion == "still" else yes), (yes, no)
        ways = _WAYS[topic]
        table = ways[rng.integers(len(ways))] if rng.random() < 0.5 else ways[-1 if lang == "zh" else 0]
        right = table[getattr(scene, topic)]
        others = [value for value in table.values() if value != right]
        kept = others if rng.random() < 0.6 else [str(one) for one in rng.permutation(others)[: rng.integers(1, 6)]]
        return right, tuple(str(one) for one in rng.permutation([right, *kept]))


def _ways(names: Sequence[str], *sentences: Mapping[Any, str]) -> list[dict[str, str]]:
    """How people may write values: the names in small letters, with a capital one or in capitals, or `sentences`."""
    cases = [str.lower, str.capitalize, str.upper]
    return [{name: case(name) for name in names} for case in cases] + [dict(table) for table in sentences]


_WAYS = {
    "shape": _ways(SHAPES, SHAPE_ZH),
    "colour": _ways(COLOURS, COLOUR_ZH),
    "motion": _ways(MOTIONS, MOTION_EN, MOTION_ZH),
}


def _token_bytes(folder: Path) -> list[bytes]:
    """The bytes of each token; those of special tokens are empty. GPT-2's table of byte-level BPE."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible} | {chr(256 + at): byte for at, byte in enumerate(hidden)}
    names = {token: name for name, token in Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().items()}
    return [bytes(table[letter] for letter in names[token]) if token < FIRST_SPECIAL else b"" for token in range(SIZE)]


