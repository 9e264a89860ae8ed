"""How long a step takes, learned from the steps before, and so how much of a prompt may run beside
decodes.

    seconds = base + a * decodes + b * prompt tokens + c * (prompt tokens x their context)

fitted by least squares over the steps so far, older ones weighing less. Every coefficient is >= 0:
nothing makes a step shorter. Each step counts by its relative error, so that one step that another
process held up for seconds counts like any other, and moves the fit little.

Pure: no clock; seconds are an argument.
"""

from collections.abc import Sequence as Items

from quire_engine.batch import Batch

FORGETTING = 0.995  # a step: half of what is known comes from the last 140
SWEEPS = 2  # of coordinate descent a step, from where the last step's ended
MIN_PREFILL_TOKENS = 8  # a step, so that prompts always come on

_PROMPT, _, _, _CONTEXT = range(4)  # b, base, a, c
"""Where two explain the same steps, the earlier one is taken to cost it: a prompt token is thought
too dear rather than too cheap, and a chunk gets too short rather than too long."""


class StepTime:
    """The model of one engine's steps. `max_slowdown` 0: prompts are never held back."""

    def __init__(self, max_slowdown: float = 0.0) -> None:
        """A step with decodes may take `max_slowdown` times as long as without prompt tokens."""
        self._max_slowdown = max_slowdown
        self._costs = [0.0] * 4
        self._products = [[0.0] * 4 for _ in range(4)]  # x xT, decayed
        self._targets = [0.0] * 4  # x y, decayed; y is 1: all rows are divided by their seconds

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
            for i in range(4):
                self._fit(i)

    def seconds(self, num_decodes: int, num_prefill: int = 0, context: int = 0) -> float:
        """What a step is expected to take: decodes, and a prompt's tokens after `context` more."""
        reads = num_prefill * (context + num_prefill / 2)
        row = (num_prefill, 1, num_decodes, reads)
        return sum(cost * value for cost, value in zip(self._costs, row, strict=True))

    def prefill_tokens(self, num_decodes: int, context: int, most: int) -> int:
        """Prompt tokens, `context` after their prompt's begin, that a step may take beside
        `num_decodes`; at most `most`.
        """
        if not (self._max_slowdown and num_decodes):
            return most
        spare = (self._max_slowdown - 1) * self.seconds(num_decodes)
        cost = self._costs[_PROMPT] + self._costs[_CONTEXT] * context
        fitting = int(min(spare / cost, most)) if cost else most
        return min(most, max(MIN_PREFILL_TOKENS, fitting))

    def _fit(self, i: int) -> None:
        """The best cost for feature `i` while the others stand."""
        products = self._products[i]
        if products[i] > 0:
            others = sum(p * cost for p, cost in zip(products, self._costs, strict=True))
            left = self._targets[i] - others + products[i] * self._costs[i]
            self._costs[i] = max(0.0, left / products[i])


def _features(batch: Batch) -> Items[float]:
    """In the costs' order."""
    prompts = [chunk for chunk in batch.chunks if not chunk.sequence.is_decoding]
    num_tokens = sum(chunk.num_tokens for chunk in prompts)
    reads = sum(
        chunk.num_tokens * (chunk.sequence.num_computed_tokens + chunk.num_tokens / 2)
        for chunk in prompts
    )
    return (num_tokens, 1, len(batch.chunks) - len(prompts), reads)
