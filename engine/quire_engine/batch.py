"""One step's work, as the scheduler hands it to the runner, and what came of it."""

from dataclasses import dataclass

from quire_engine.messages import FinishReason
from quire_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` uncomputed tokens of a sequence."""

    sequence: Sequence
    num_tokens: int
    samples: bool  # it reaches the sequence's end: its last row's logits are wanted


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunks of one step, each sequence at most once: running ones first; where LoRA adapters
    are in it, by adapter before that."""

    chunks: tuple[Chunk, ...]
    queue_seconds: tuple[float, ...] = ()  # of each sequence admitted for the first time

    @property
    def num_tokens(self) -> int:
        """Tokens in the step."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def sampling(self) -> list[Sequence]:
        """The sequences that get a token, in the order of the logits' rows."""
        return [chunk.sequence for chunk in self.chunks if chunk.samples]


@dataclass(frozen=True, slots=True)
class Progression:
    """What a step did to a sequence that sampled."""

    sequence: Sequence
    token_id: int | None  # None: its row could not be sampled, finish_reason is "error"
    finish_reason: FinishReason | None
