"""The options that control how an answer's tokens are chosen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .validation import Flag, StrictModel

_StopText = Annotated[str, Field(min_length=1, max_length=256)]


class GenerationOptions(StrictModel, title="Answer options"):
    """Options of one answer, with transformers' names and meaning."""

    max_new_tokens: Annotated[
        int, Flag("N"), Field(ge=1, le=32768, description="Maximum number of tokens in the answer.")
    ] = 128
    temperature: Annotated[
        float, Flag("T"), Field(ge=0, le=100, description="Sampling temperature; 0 is greedy.")
    ] = 0.0
    top_p: Annotated[
        float, Flag("P"),
        Field(
            gt=0, le=1, description="Sample from the most likely tokens whose probabilities add up to P; 1 means all."
        ),
    ] = 1.0
    top_k: Annotated[
        int, Flag("K"),
        Field(ge=0, le=1_000_000, description="Sample from the K most likely tokens; 0 means all."),
    ] = 0
    repetition_penalty: Annotated[
        float, Flag("R"),
        Field(gt=0, le=100, description="Above 1, tokens of the prompt and of the answer so far become less likely."),
    ] = 1.0
    seed: Annotated[
        int | None, Flag("N", "random"),
        Field(ge=0, lt=2**63, description="Seed for sampling. The same seed gives the same answer."),
    ] = None
    stop: Annotated[
        tuple[_StopText, ...], Flag("TEXT"),
        Field(max_length=16, strict=False, description="Text that ends the answer and is cut off. Can be repeated."),
    ] = ()
