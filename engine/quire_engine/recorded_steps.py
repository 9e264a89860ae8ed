"""Decode steps whose kernel calls are recorded once a batch size and then made by one call.

A decode step of a small model makes hundreds of calls, each of which takes longer in Python than
some take in C++. All that changes from one step to the next of as many sequences stands in memory:
what the sequences are, and where their blocks lie.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import quire_kernels as kernels
from quire_engine.models.decoder import StepInputs

# A recording takes about 1 kB a layer. More sequences are run call by call, whose cost is small
# beside such a step's.
MAX_SEQS = 32


class RecordedSteps:
    """Recordings by batch size, and the inputs that all of them read.

    They hold addresses of weights, caches and workspace, which stay where they are.
    """

    def __init__(self, forward: Callable[[StepInputs], Tensor], max_blocks: int) -> None:
        """`forward` of a decoder with a workspace; `max_blocks` of a sequence."""
        self._forward = forward
        self._inputs = StepInputs(
            token_ids=torch.zeros(MAX_SEQS, dtype=torch.int64),
            positions=torch.zeros(MAX_SEQS, dtype=torch.int64),
            slot_mapping=torch.zeros(MAX_SEQS, dtype=torch.int64),
            query_start_loc=torch.arange(MAX_SEQS + 1, dtype=torch.int32),
            seq_lens=torch.zeros(MAX_SEQS, dtype=torch.int32),
            block_tables=torch.zeros(MAX_SEQS, max_blocks, dtype=torch.int32),
            logits_rows=torch.arange(MAX_SEQS),
        )
        self._recorded: dict[int, tuple[kernels.Recording, Tensor]] = {}
        self._can_record = True

    def run(self, inputs: StepInputs) -> Tensor | None:
        """Logits [B, vocab], good until the next step; bitwise those of `forward`. None where the
        step is to be run call by call: no plain decodes, too many, or one that a kernel refuses."""
        if not self._takes(inputs):
            return None
        num_seqs = len(inputs.seq_lens)
        own = self._filled(inputs)
        if num_seqs not in self._recorded:
            return self._record(own)
        recording, logits = self._recorded[num_seqs]
        return logits if recording.replay() else None

    def _takes(self, inputs: StepInputs) -> bool:
        num_seqs, max_blocks = inputs.block_tables.shape
        return (
            self._can_record
            and len(inputs.token_ids) == len(inputs.logits_rows) == num_seqs <= MAX_SEQS
            and max_blocks <= self._inputs.block_tables.shape[1]
            and not inputs.adapters
        )

    def _filled(self, inputs: StepInputs) -> StepInputs:
        """`inputs`, where recordings find them."""
        num_seqs, max_blocks = inputs.block_tables.shape
        own = StepInputs(
            token_ids=self._inputs.token_ids[:num_seqs].copy_(inputs.token_ids),
            positions=self._inputs.positions[:num_seqs].copy_(inputs.positions),
            slot_mapping=self._inputs.slot_mapping[:num_seqs].copy_(inputs.slot_mapping),
            query_start_loc=self._inputs.query_start_loc[: num_seqs + 1],
            seq_lens=self._inputs.seq_lens[:num_seqs].copy_(inputs.seq_lens),
            block_tables=self._inputs.block_tables[:num_seqs],
            logits_rows=self._inputs.logits_rows[:num_seqs],
        )
        own.block_tables[:, :max_blocks] = inputs.block_tables
        own.block_tables[:, max_blocks:] = -1  # no block: a sequence beyond its table is refused
        return own

    def _record(self, own: StepInputs) -> Tensor | None:
        try:
            logits, recording = kernels.record(lambda: self._forward(own))
        except kernels.KernelInputError:
            return None  # the caller's own run tells what is wrong with what it was given
        if recording is None:  # other kernels, whose steps are run call by call from now on
            self._can_record = False
        else:
            self._recorded[len(own.seq_lens)] = recording, logits
        return logits
