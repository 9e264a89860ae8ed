import pytest

from quire_engine.block_manager import BlockManager, chain_hash, root_hash
from quire_engine.errors import CoreDied
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.sequence import Sequence


def sequence_of(tokens, salt=""):
    return Sequence.of(
        AddRequest(
            request_id=RequestId("r"),
            prompt_token_ids=tuple(tokens),
            sampling=SamplingParams(),
            cache_salt=salt,
        ),
        arrival_time=0.0,
    )


def computed(blocks, tokens, salt=""):
    """A sequence that holds blocks for all of its tokens, computed and committed."""
    sequence = sequence_of(tokens, salt)
    assert blocks.allocate(sequence, sequence.num_tokens)
    sequence.num_computed_tokens = sequence.num_tokens
    blocks.commit(sequence, 0)
    return sequence


@pytest.fixture
def blocks():
    return BlockManager(8, 4, enable_prefix_caching=True)


def test_a_sequence_takes_blocks_for_its_tokens_and_gives_them_back(blocks):
    sequence = sequence_of(range(9))
    assert blocks.allocate(sequence, 9)
    assert len(sequence.block_table) == 3
    assert blocks.num_used_blocks == 3
    blocks.check_integrity([sequence])
    blocks.free(sequence)
    assert (sequence.block_table, blocks.num_free_blocks) == ([], 8)
    blocks.check_integrity([])


def test_an_adapters_content_begins_another_chain():
    roots = {root_hash("", b""), root_hash("", b"1" * 32), root_hash("", b"2" * 32)}
    roots |= {root_hash("salt", b""), root_hash("salt", b"1" * 32)}
    assert len(roots) == 5
    assert root_hash("") == root_hash("", b"")


def test_growing_within_a_block_takes_none(blocks):
    sequence = sequence_of(range(9))
    blocks.allocate(sequence, 9)
    assert blocks.allocate(sequence, 12)
    assert len(sequence.block_table) == 3
    assert blocks.allocate(sequence, 13)
    assert len(sequence.block_table) == 4


def test_an_allocation_that_does_not_fit_changes_nothing(blocks):
    sequence = sequence_of(range(40))
    assert not blocks.allocate(sequence, 40)
    assert (sequence.block_table, blocks.num_free_blocks) == ([], 8)


def test_a_prefix_is_found_while_its_owner_runs_and_after(blocks):
    tokens = list(range(10))
    owner = computed(blocks, tokens)
    other = sequence_of([*tokens[:8], 77, 78])
    assert blocks.find_prefix(other) == owner.block_table[:2]
    held = list(owner.block_table[:2])
    blocks.free(owner)
    assert blocks.find_prefix(other) == held
    blocks.take_prefix(other, held)
    blocks.check_integrity([other])
    assert blocks.num_used_blocks == 2


def test_the_last_token_is_always_left_to_compute(blocks):
    computed(blocks, range(8))
    assert len(blocks.find_prefix(sequence_of(range(8)))) == 1
    assert len(blocks.find_prefix(sequence_of(range(9)))) == 2


def test_a_block_counts_only_after_the_same_prefix(blocks):
    computed(blocks, [1, 2, 3, 4, 5, 6, 7, 8])
    assert blocks.find_prefix(sequence_of([9, 9, 9, 9, 5, 6, 7, 8, 0])) == []


def test_salts_do_not_see_each_other(blocks):
    owner = computed(blocks, range(8), salt="alice")
    assert blocks.find_prefix(sequence_of(range(9), salt="bob")) == []
    assert blocks.find_prefix(sequence_of(range(9))) == []
    assert blocks.find_prefix(sequence_of(range(9), salt="alice")) == owner.block_table


def test_a_reset_forgets_what_is_cached_and_what_is_held(blocks):
    gone, holder = computed(blocks, range(8)), computed(blocks, range(50, 58))
    blocks.free(gone)
    blocks.reset_prefix_cache()
    blocks.check_integrity([holder])
    assert blocks.num_free_blocks == 6
    assert blocks.find_prefix(sequence_of(range(9))) == []
    assert blocks.find_prefix(sequence_of(range(50, 59))) == []
    again = computed(blocks, range(8))
    assert blocks.find_prefix(sequence_of(range(9))) == again.block_table
    blocks.free(again)
    blocks.free(holder)
    blocks.check_integrity([])
    assert blocks.num_free_blocks == 8


def test_blocks_that_fill_up_after_a_reset_are_known(blocks):
    """The first block is computed anew; the second one follows the old first one's tokens."""
    old = computed(blocks, range(4))
    blocks.reset_prefix_cache()
    old.token_ids += range(4, 8)
    assert blocks.allocate(old, 8)
    old.num_computed_tokens = 8
    blocks.commit(old, 4)
    assert blocks.find_prefix(sequence_of(range(9))) == []
    new = computed(blocks, range(4))
    assert blocks.find_prefix(sequence_of(range(9))) == [new.block_table[0], old.block_table[1]]
    blocks.check_integrity([old, new])


def test_without_caching_nothing_is_found():
    blocks = BlockManager(8, 4, enable_prefix_caching=False)
    owner = computed(blocks, range(8))
    assert blocks.find_prefix(sequence_of(range(9))) == []
    blocks.free(owner)
    blocks.check_integrity([])


def test_the_least_recently_used_block_is_evicted_first(blocks):
    old, recent = computed(blocks, [1] * 8), computed(blocks, [2] * 8)
    blocks.free(old)
    blocks.free(recent)
    filler = sequence_of(range(100, 124))
    assert blocks.allocate(filler, 20)  # the 4 free ones and one cached: the end of `old`
    assert len(blocks.find_prefix(sequence_of([1] * 9))) == 1
    assert len(blocks.find_prefix(sequence_of([2] * 9))) == 2
    blocks.allocate(filler, 24)
    assert len(blocks.find_prefix(sequence_of([1] * 9))) == 0
    assert len(blocks.find_prefix(sequence_of([2] * 9))) == 2
    blocks.check_integrity([filler])


def test_blocks_computed_twice_are_known_once(blocks):
    first, second = computed(blocks, range(8)), computed(blocks, range(8))
    assert blocks.find_prefix(sequence_of(range(9))) == first.block_table
    blocks.free(second)
    blocks.free(first)
    blocks.check_integrity([])
    assert blocks.num_free_blocks == 8


def test_admission_counts_the_prefix_once_and_room_for_an_answer(blocks):
    owner = computed(blocks, range(16))
    hopeful = sequence_of([*range(16), *range(50, 65)])  # 31 tokens: 8 blocks with the next one
    prefix = blocks.find_prefix(hopeful)
    assert blocks.can_admit(hopeful, prefix)  # 4 shared while held, 4 free
    blocks.free(owner)
    assert blocks.can_admit(hopeful, prefix)  # 4 cached, which are not free as well
    assert not blocks.can_admit(sequence_of([*range(16), *range(50, 66)]), prefix)


def test_a_leak_is_found(blocks):
    sequence = sequence_of(range(9))
    blocks.allocate(sequence, 9)
    with pytest.raises(CoreDied, match="reference counts"):
        blocks.check_integrity([])
    lost = sequence.block_table.pop()
    with pytest.raises(CoreDied, match="reference counts"):
        blocks.check_integrity([sequence])
    sequence.block_table.append(lost)
    blocks._free.append(lost)
    with pytest.raises(CoreDied, match="free \\+ used \\+ cached = total"):
        blocks.check_integrity([sequence])


def test_hashes_depend_on_all_that_went_before():
    assert chain_hash(root_hash(""), [1, 2]) == chain_hash(root_hash(""), [1, 2])
    assert chain_hash(root_hash("a"), [1, 2]) != chain_hash(root_hash(""), [1, 2])
    assert chain_hash(root_hash(""), [1, 2]) != chain_hash(root_hash(""), [2, 1])
