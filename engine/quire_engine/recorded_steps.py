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
from quire_engine.static_inputs import StaticInputs

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
        self._inputs = StaticInputs(MAX_SEQS, max_blocks, torch.device("cpu"))
        self._recorded: dict[int, tuple[kernels.Recording, Tensor]] = {}
        self._can_record = True

    def run(self, inputs: StepInputs) -> Tensor | None:
        """Logits [B, vocab], good until the next step; bitwise those of `forward`. None where the
        step is to be run call by call: no plain decodes, too many, or one that a kernel refuses."""
        if not (self._can_record and self._inputs.take(inputs)):
            return None
        num_seqs = len(inputs.seq_lens)
        own = self._inputs.fill(inputs)
        if num_seqs not in self._recorded:
            return self._record(own)
        recording, logits = self._recorded[num_seqs]
        return logits if recording.replay() else None

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
