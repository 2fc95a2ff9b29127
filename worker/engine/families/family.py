"""The interface between the worker and a model family: all that differs from family to family on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart

from ...model_files.config_files import TextConfig
from ...runners.logits import Float, Int
from ..patches import Grid

Bools = npt.NDArray[np.bool_]
Sizes = tuple[int, ...]
Maker = Literal["deploy/models", "sophon-demo", "llm_convert"]
"""What made a bmodel."""


class Family(Protocol):
    """A model's family, with the sizes that the model's own files state. May be used from any thread.

    A medium is a `FramesPart`: an image or a video as its message states it, with the times of its frames.
    """

    @classmethod
    def read(cls, directory: Path, text: TextConfig, vision: object) -> Family:
        """A model's family, from its processor's files, if they are there, and from two parts of its config.json.

        Args:
            directory: of these files.
            text: the language model's part.
            vision: the `vision_config`, unchecked.

        Raises:
            Unsupported: the files do not fit.
        """

    @property
    def patch_size(self) -> int:
        """Pixels along a side of a patch."""

    @property
    def merge_size(self) -> int:
        """Patches along a side of a vision token."""

    @property
    def temporal_patch_size(self) -> int:
        """Frames in a patch."""

    @property
    def min_pixels(self) -> int:
        """Least height × width of an image, unless its message says otherwise."""

    @property
    def max_pixels(self) -> int:
        """Most height × width of an image, unless its message says otherwise."""

    @property
    def patch_dim(self) -> int:
        """P, the number of values in a patch."""

    @property
    def rescale(self) -> float:
        """With `mean` and `std`, how pixel values are normalised: see `patches.normalise`."""

    @property
    def mean(self) -> tuple[float, ...]:
        """See `rescale`."""

    @property
    def std(self) -> tuple[float, ...]:
        """See `rescale`."""

    @property
    def deepstack(self) -> int:
        """D, the number of the language model's first layers after which further vision features are added to the
        hidden states."""

    @property
    def interleaved(self) -> bool:
        """Whether the frequencies of M-RoPE take time, height and width in turn. Otherwise each has a section."""

    @property
    def tokens_per_grid(self) -> int:
        """About how many tokens each temporal grid of a video has besides its vision tokens; 0 if it has none."""

    @property
    def end_tokens(self) -> tuple[str, ...]:
        """Texts of tokens that always end an answer, even if the model's files do not name them."""

    def grid(self, medium: FramesPart) -> Grid:
        """A medium's (t, h, w) in patches. Raises BadRequest for a size that does not divide into vision tokens."""

    def vision_tokens(self, grid: Grid) -> int:
        """The number of vision tokens V of a medium with this grid."""

    def patches(self, frames: Frames) -> Frames:
        """Cut a medium's frames, uint8 [n, height, width, 3], into patches, uint8 [t·h·w, P], in the ViT's order: those
        of a temporal grid follow those of the one before it."""

    def pixel_values(self, patches: Frames) -> Float:
        """Normalised patches, float32 [n, P], for a ViT that does not normalise patches itself."""

    def prompt_tokens(
        self, text: str, media: Sequence[FramesPart], encode: Callable[[str], Sequence[int]]
    ) -> tuple[Int, Bools]:
        """Tokens of a prompt.

        Args:
            text: the conversation as the chat template writes it.
            media: its media, in order.
            encode: the tokenizer: the tokens of a text.

        Returns:
            int32 [L] tokens, and bool [L]: where a token stands for a piece of a medium.

        Raises:
            BadRequest: the text does not have a place for each medium.
        """

    def positions(self, vision: Bools, media: Sequence[FramesPart]) -> tuple[Int, int]:
        """M-RoPE positions of a prompt.

        Args:
            vision: bool [L], as `prompt_tokens` returns it.
            media: the prompt's media, in order.

        Returns:
            int32 [3, L], and the delta: the token at place p ≥ L has position p + delta in all three.
        """

    def vit_inputs(self, grids: Sequence[tuple[int, int]], size: int) -> tuple[npt.NDArray[np.generic], ...]:
        """The ViT's inputs after the patches, in the net's order. Patches see only their own temporal grid. The ViT's
        vision tokens lie in the order of transformers, whatever the order of its patches.

        Args:
            grids: the rows and columns of each grid.
            size: number of patches that the net takes, at least those of the grids. The rest is padding.
        """

    def vit_elements(self, size: int, hidden: int) -> tuple[Sizes, Sizes]:
        """The number of elements of each input of the ViT, the patches included, and of each of its 1 + D outputs, when
        the net takes `size` patches and the language model's width is `hidden`."""

    def max_side(self, maker: Maker, size: int, tables: Sequence[int]) -> int:
        """Most patches along a side of a frame that a bmodel's ViT can place.

        Args:
            maker: what made the bmodel.
            size: most patches that the ViT takes.
            tables: bytes of the tables that the ViT looks positions up in.
        """
