"""Fakes that behave, for tests of this package and of those who drive it. No torch at import."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from quire_engine.batch import Batch, Chunk
from quire_engine.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor


def next_token(token_ids: list[int], vocab_size: int) -> int:
    """What FakeModel answers to a history: any change of any token of it changes the answer."""
    digest = blake2b(repr(token_ids).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % vocab_size


def complete(prompt: list[int], num_tokens: int, vocab_size: int) -> list[int]:
    """The answer that a right engine gives to `prompt` over FakeModel, ignoring stop ids."""
    history = list(prompt)
    for _ in range(num_tokens):
        history.append(next_token(history, vocab_size))
    return history[len(prompt) :]


@dataclass
class FakeModel:
    """Keeps tokens where a model keeps keys and values, and reads them back through block tables.

    A block shared wrongly, overwritten or forgotten changes the history it sees, hence its answer.
    """

    block_size: int
    vocab_size: int = 97
    cells: dict[int, int] = field(default_factory=dict)  # slot -> token
    num_steps: int = 0

    def run(self, batch: Batch) -> "Tensor":
        """Logits [R, vocab] that are largest at each row's next token."""
        import torch

        logits = torch.zeros(len(batch.sampling), self.vocab_size)
        for row, token_id in enumerate(self.next_tokens(batch)):
            logits[row, token_id] = 1.0
        return logits

    def next_tokens(self, batch: Batch) -> list[int]:
        """The next token of each sequence that samples."""
        self.num_steps += 1
        for chunk in batch.chunks:
            self._write(chunk)
        return [next_token(self._history(sequence), self.vocab_size) for sequence in batch.sampling]

    def _write(self, chunk: Chunk) -> None:
        sequence, begin = chunk.sequence, chunk.sequence.num_computed_tokens
        for position in range(begin, begin + chunk.num_tokens):
            self.cells[self._slot(sequence, position)] = sequence.token_ids[position]

    def _history(self, sequence: Sequence) -> list[int]:
        return [self.cells[self._slot(sequence, p)] for p in range(sequence.num_tokens)]

    def _slot(self, sequence: Sequence, position: int) -> int:
        block_id = sequence.block_table[position // self.block_size]
        return block_id * self.block_size + position % self.block_size
