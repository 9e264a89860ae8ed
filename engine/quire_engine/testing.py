"""Fakes that behave, for tests of this package and of those who drive it. No torch at import."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from quire_engine.batch import Batch, Chunk
from quire_engine.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor


def _link(previous: bytes, token_id: int) -> bytes:
    """What stands in for a token's keys and values: they depend on all tokens before, too."""
    return blake2b(previous + token_id.to_bytes(8, "little"), digest_size=8).digest()


def _root(cache_salt: str, adapter: str) -> bytes:
    """Before the first token: a tenant, and a LoRA adapter or none."""
    return f"{adapter}/{cache_salt}".encode()


def _answer(links: list[bytes], vocab_size: int) -> int:
    digest = blake2b(b"".join(links), digest_size=4).digest()
    return int.from_bytes(digest, "little") % vocab_size


def complete(
    prompt: list[int], num_tokens: int, vocab_size: int, cache_salt: str = "", adapter: str = ""
) -> list[int]:
    """The answer that a right engine gives to `prompt` over FakeModel, ignoring stop ids."""
    links = [_root(cache_salt, adapter)]
    for token_id in prompt:
        links.append(_link(links[-1], token_id))
    tokens: list[int] = []
    for _ in range(num_tokens):
        tokens.append(_answer(links[1:], vocab_size))
        links.append(_link(links[-1], tokens[-1]))
    return tokens


@dataclass
class FakeModel:
    """Keeps a hash of the history where a model keeps keys and values, and reads all of them back.

    It goes through the block tables as attention does: a block shared wrongly (another history,
    another tenant's salt or adapter), overwritten or forgotten changes the answer.
    """

    block_size: int
    vocab_size: int = 97
    cells: dict[int, bytes] = field(default_factory=dict)  # slot -> link
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
        return [_answer(self._history(s), self.vocab_size) for s in batch.sampling]

    def _write(self, chunk: Chunk) -> None:
        sequence, begin = chunk.sequence, chunk.sequence.num_computed_tokens
        for position in range(begin, begin + chunk.num_tokens):
            previous = (
                self.cells[self._slot(sequence, position - 1)]
                if position
                else _root(sequence.cache_salt, sequence.adapter)
            )
            link = _link(previous, sequence.token_ids[position])
            self.cells[self._slot(sequence, position)] = link

    def _history(self, sequence: Sequence) -> list[bytes]:
        return [self.cells[self._slot(sequence, p)] for p in range(sequence.num_tokens)]

    def _slot(self, sequence: Sequence, position: int) -> int:
        block_id = sequence.block_table[position // self.block_size]
        return block_id * self.block_size + position % self.block_size
