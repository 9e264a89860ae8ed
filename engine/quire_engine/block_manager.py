"""The KV cache's blocks: who holds which, and which full blocks are worth keeping.

A block is in exactly one of three states:

    free     nobody holds it, its content means nothing
    used     one or more sequences hold it (reference count)
    cached   nobody holds it, but its content is a known prefix: found again by hash, or evicted,
             least recently used first, when the free ones are gone

A full block's hash covers its tokens and, through the previous block's hash, all before them; the
chain starts from the caller's cache salt, so that tenants with different salts never meet, and from
the content of the sequence's LoRA adapter, which all of its keys and values depend on. BLAKE2b
and not Python's hash(): a collision would serve one request another one's keys and values.

All operations are O(1) a block. Blocks are never moved or shared for writing: only full blocks are
shared, so a block table is append-only.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable
from collections.abc import Sequence as Items
from hashlib import blake2b

from quire_engine.errors import CoreDied
from quire_engine.sequence import Sequence


def chain_hash(previous: bytes, token_ids: Items[int]) -> bytes:
    """The hash of a full block of `token_ids` after a prefix that hashes to `previous`."""
    return blake2b(previous + array("q", token_ids).tobytes(), digest_size=32).digest()


def root_hash(cache_salt: str, adapter_hash: bytes = b"") -> bytes:
    """Where the chain of a caller with `cache_salt` starts, over a LoRA adapter or none."""
    salt = cache_salt.encode()
    return blake2b(salt, digest_size=32, key=adapter_hash, person=b"quire-prefix").digest()


class BlockManager:
    """Allocates, shares, caches and frees `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._free = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that an allocation can take: free ones and cached ones that nobody holds."""
        return len(self._free) + len(self._cached)

    @property
    def num_used_blocks(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - self.num_free_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill or begin."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks in the cache that hold the beginning of `sequence`, in order; none are taken.

        The last token is never counted in: it must be computed to have logits.
        """
        if not self._caching:
            return []
        self._hash_blocks(sequence, (sequence.num_tokens - 1) // self.block_size)
        found: list[int] = []
        for block_hash in sequence.block_hashes[: (sequence.num_tokens - 1) // self.block_size]:
            block_id = self._block_of.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def can_admit(self, sequence: Sequence, prefix: Items[int]) -> bool:
        """Whether all tokens of `sequence`, and one more, fit beside what is held now.

        `prefix` is what find_prefix gave: blocks of it that nobody holds leave the free ones.
        """
        num_idle = sum(1 for block_id in prefix if self._ref_counts[block_id] == 0)
        num_new = self.num_blocks_for(sequence.num_tokens + 1) - len(prefix)
        return num_new <= self.num_free_blocks - num_idle

    def take_prefix(self, sequence: Sequence, prefix: Items[int]) -> None:
        """Begin `sequence`'s block table with the cached blocks `prefix`."""
        for block_id in prefix:
            self._cached.pop(block_id, None)
            self._ref_counts[block_id] += 1
        sequence.block_table = list(prefix)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Grow the block table to hold `num_tokens`; False, and nothing changed, if it cannot."""
        num_new = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if num_new > self.num_free_blocks:
            return False
        for _ in range(num_new):
            sequence.block_table.append(self._take())
        return True

    def commit(self, sequence: Sequence, num_committed_tokens: int) -> None:
        """Make the blocks that filled up beyond `num_committed_tokens` known to find_prefix."""
        first = num_committed_tokens // self.block_size
        end = sequence.num_computed_tokens // self.block_size
        if not self._caching or first == end:
            return
        self._hash_blocks(sequence, end)
        for block_id, block_hash in zip(
            sequence.block_table[first:end], sequence.block_hashes[first:end], strict=True
        ):
            if block_hash not in self._block_of:  # else computed twice: the first one is kept
                self._hash_of[block_id] = block_hash
                self._block_of[block_hash] = block_id

    def free(self, sequence: Sequence) -> None:
        """Give back all blocks of `sequence`, its end first, so that the end is evicted first."""
        for block_id in reversed(sequence.block_table):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                if block_id in self._hash_of:
                    self._cached[block_id] = None
                else:
                    self._free.append(block_id)
        sequence.block_table = []

    def reset_prefix_cache(self) -> None:
        """Forget every prefix. Sequences keep the blocks that they hold, known to nobody; blocks
        that fill up from now on are known as ever."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._hash_of.clear()
        self._block_of.clear()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raise CoreDied unless free + used + cached = total, and `sequences` hold all used."""
        held = [0] * self.num_blocks
        for sequence in sequences:
            for block_id in sequence.block_table:
                held[block_id] += 1
        _require(held == self._ref_counts, "reference counts", held, self._ref_counts)
        states = [*self._free, *self._cached, *(b for b, count in enumerate(held) if count)]
        _require(
            sorted(states) == list(range(self.num_blocks)),
            "free + used + cached = total",
            f"{len(self._free)} + {sum(map(bool, held))} + {len(self._cached)}",
            self.num_blocks,
        )
        back = {block_hash: block_id for block_id, block_hash in self._hash_of.items()}
        _require(back == self._block_of, "hashes and blocks", len(back), len(self._block_of))
        _require(
            self._cached.keys() <= self._hash_of.keys(),
            "cached blocks have a hash",
            len(self._cached),
            len(self._hash_of),
        )

    def _take(self) -> int:
        if self._free:
            block_id = self._free.popleft()
        else:
            block_id, _ = self._cached.popitem(last=False)
            del self._block_of[self._hash_of.pop(block_id)]
        self._ref_counts[block_id] = 1
        return block_id

    def _hash_blocks(self, sequence: Sequence, num_blocks: int) -> None:
        hashes, size = sequence.block_hashes, self.block_size
        for index in range(len(hashes), num_blocks):
            previous = (
                hashes[-1] if hashes else root_hash(sequence.cache_salt, sequence.adapter_hash)
            )
            tokens = sequence.token_ids[index * size : (index + 1) * size]
            hashes.append(chain_hash(previous, tokens))


def _require(holds: bool, rule: str, left: object, right: object) -> None:
    if not holds:
        raise CoreDied(
            f"block manager: {rule} does not hold: {left} != {right}; this is a bug of ours"
        )
