"""How long a step takes, learned from the steps before, and so how much of a prompt may run beside
decodes.

    seconds = base + a * decodes + b * prompt tokens     (their products with the weights)
              + c * cached tokens                        (their keys and values, read once a chunk)
              + d * (tokens of a chunk x those before)   (its attention)

fitted by least squares over the steps so far, older ones weighing less. Every coefficient is >= 0:
nothing makes a step shorter. Each step counts by its relative error, so that one step that another
process held up for seconds counts like any other, and moves the fit little.

Pure: no clock; seconds are an argument.
"""

import math
from collections.abc import Sequence as Items

from quire_engine.batch import Batch

FORGETTING = 0.995  # a step: half of what is known comes from the last 140
SWEEPS = 2  # of coordinate descent a step, from where the last step's ended
MIN_PREFILL_TOKENS = 4  # a step, so that prompts always come on: deep in one, reading its keys once
# takes longer than multiplying by them for so many tokens

_PROMPT, _, _, _READS, _PRODUCTS = range(5)  # b, base, a, c, d
"""Where two explain the same steps, the earlier one is taken to cost it: a prompt token is thought
too dear rather than too cheap, and a chunk gets too short rather than too long."""


class PrefillAllowance:
    """How much of prompts one step may still take: `seconds`, and something of the first prompt
    whatever it costs, so that prompts always come on."""

    def __init__(self, seconds: float, model: "StepTime") -> None:
        """`seconds` infinite: nothing is held back."""
        self._seconds = seconds
        self._model = model
        self._least = MIN_PREFILL_TOKENS

    @property
    def is_spent(self) -> bool:
        """Whether no prompt may take anything more."""
        return self._seconds <= 0 and not self._least

    def tokens(self, context: int, most: int) -> int:
        """Tokens, `context` after their prompt's begin, that may run; at most `most`."""
        return min(most, max(self._least, self._model.fitting(self._seconds, context, most)))

    def take(self, num_tokens: int, context: int) -> None:
        """Count them."""
        self._seconds -= self._model.seconds((), [(num_tokens, context)]) - self._model.seconds(())
        self._least = 0


class StepTime:
    """The model of one engine's steps. `max_slowdown` 0: prompts are never held back."""

    def __init__(self, max_slowdown: float = 0.0) -> None:
        """Beside one prompt a step with decodes may take `max_slowdown` times as long as alone."""
        self._max_slowdown = max_slowdown
        self._costs = [0.0] * 5
        self._products = [[0.0] * 5 for _ in range(5)]  # x xT, decayed
        self._targets = [0.0] * 5  # x y, decayed; y is 1: all rows are divided by their seconds

    def observe(self, batch: Batch, seconds: float) -> None:
        """Take in that `batch`, not yet counted as computed, took `seconds`."""
        if not (self._max_slowdown and batch.chunks and seconds > 0):
            return
        row = [value / seconds for value in _features(batch)]
        for i, x in enumerate(row):
            self._targets[i] = FORGETTING * self._targets[i] + x
            products = self._products[i]
            for j, y in enumerate(row):
                products[j] = FORGETTING * products[j] + x * y
        for _ in range(SWEEPS):
            for i in range(5):
                self._fit(i)

    def seconds(self, decodes: Items[int], prefill: Items[tuple[int, int]] = ()) -> float:
        """What a step is expected to take. `decodes`: how many tokens each has cached; `prefill`:
        the tokens of each prompt's chunk, and how many it has cached before them.
        """
        row = _row(len(decodes), [*((1, context) for context in decodes), *prefill])
        return sum(cost * value for cost, value in zip(self._costs, row, strict=True))

    def allowance(self, decodes: Items[int], num_prompts: int = 1) -> PrefillAllowance:
        """What `num_prompts` that are there may take of a step with `decodes`, as for `seconds`:
        each as much as one alone, so that none waits the longer for the others."""
        if not (self._max_slowdown and decodes):
            return PrefillAllowance(math.inf, self)
        share = (self._max_slowdown - 1) * num_prompts
        return PrefillAllowance(share * self.seconds(decodes), self)

    def fitting(self, seconds: float, context: int, most: int) -> int:
        """Tokens, `context` after their prompt's begin, that take `seconds`; at most `most`."""
        left = seconds - self._costs[_READS] * context
        cost = self._costs[_PROMPT] + self._costs[_PRODUCTS] * context
        return int(min(max(left, 0.0) / cost, most)) if cost else most

    def _fit(self, i: int) -> None:
        """The best cost for feature `i` while the others stand."""
        products = self._products[i]
        if products[i] > 0:
            others = sum(p * cost for p, cost in zip(products, self._costs, strict=True))
            left = self._targets[i] - others + products[i] * self._costs[i]
            self._costs[i] = max(0.0, left / products[i])


def _features(batch: Batch) -> Items[float]:
    num_decodes = sum(chunk.sequence.is_decoding for chunk in batch.chunks)
    return _row(num_decodes, [(c.num_tokens, c.sequence.num_computed_tokens) for c in batch.chunks])


def _row(num_decodes: int, chunks: Items[tuple[int, int]]) -> Items[float]:
    """In the costs' order. `chunks`: tokens and cached tokens of each, decodes too."""
    num_tokens = sum(tokens for tokens, _ in chunks)
    reads = sum(context for _, context in chunks)
    products = sum(tokens * (context + tokens / 2) for tokens, context in chunks)
    return (num_tokens - num_decodes, 1, num_decodes, reads, products)
