"""Chooses the next token. Order and meaning of the steps are those of transformers' logits processors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sailq.shared.jobs import GenerationOptions

Scores = npt.NDArray[np.float64]


class NotFinite(ValueError):
    """The model returned NaNs or infinities, so no token can be chosen."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the model returned {what} that are not finite")


class Sampler:
    """Chooses the tokens of one request. Holds its options, the tokens it has seen, and its random generator.

    Each sampled token takes exactly one draw from the request's own generator, so a seed gives the same text
    whatever else is in the batch. A token without an alternative is not sampled and takes none.

    Attributes:
        greedy: whether each token is the argmax of the logits.
    """

    def __init__(self, options: GenerationOptions, prompt: npt.NDArray[np.int32]) -> None:
        self._options = options
        self.greedy = options.temperature == 0 and options.repetition_penalty == 1
        self._seen = np.unique(prompt)
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def sample(self, logits: npt.NDArray[np.float32], allowed: npt.NDArray[np.int64] | None = None) -> int:
        """The next token, from float32 [vocabulary]; raises NotFinite.

        Args:
            allowed: int64 [n], the tokens to choose from, in order; all by default. The others are left out before
                temperature, top-k and top-p apply, as in vLLM. The penalty changes each score by itself.
        """
        if not np.isfinite(logits).all():
            raise NotFinite("logits")
        options = self._options
        scores = repetition_penalty(logits.astype(np.float64), self._seen, options.repetition_penalty)
        if allowed is not None:
            scores = scores[allowed]
        token = int(np.argmax(scores))
        if options.temperature > 0:
            probabilities = softmax(warp(scores, options.temperature, options.top_k, options.top_p))
            cumulative = np.cumsum(probabilities)
            token = int(np.searchsorted(cumulative / cumulative[-1], self._random.random(), side="right"))
        if allowed is not None:
            token = int(allowed[token])
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Count a token as seen. `sample` does so itself."""
        if self._options.repetition_penalty != 1:
            self._seen = np.union1d(self._seen, [token])


def repetition_penalty(scores: Scores, seen: npt.NDArray[np.int32], penalty: float) -> Scores:
    """`RepetitionPenaltyLogitsProcessor` (arXiv 1909.05858): seen tokens' scores / penalty, × if negative."""
    if penalty == 1:
        return scores
    result: Scores = scores.copy()
    seen = seen[seen < len(scores)]
    result[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return result


def warp(scores: Scores, temperature: float, top_k: int, top_p: float) -> Scores:
    """Apply temperature, then top-k, then top-p. Filtered scores become -inf. `temperature` > 0.

    Scores are first shifted to a maximum of 0: the probabilities are the same, and the smallest temperature
    overflows to -inf instead of nan.
    """
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / temperature
    if 0 < top_k < len(scores):
        scores = np.where(scores < np.partition(scores, -top_k)[-top_k], -np.inf, scores)
    if top_p < 1:
        order = np.argsort(scores, kind="stable")
        removed = np.cumsum(softmax(scores[order])) <= 1 - top_p
        removed[-1] = False
        scores = scores.copy()
        scores[order[removed]] = -np.inf
    return scores


def softmax(scores: Scores) -> Scores:
    weights: Scores = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights
