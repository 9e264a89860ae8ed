"""Decode steps on a GPU as CUDA graphs: a step's hundreds of launches become one.

A graph is captured for a few batch sizes; a step of fewer sequences than its graph is padded with
rows that write nowhere and whose logits nobody reads. The largest is captured first and all share
one pool of memory, so that the others find room in what the largest took. Those that a start has no
time for are captured when a step first wants them.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quire_engine.activations import graph_sizes
from quire_engine.models.decoder import StepInputs
from quire_engine.static_inputs import StaticInputs

AT_START = 3  # sizes captured before the engine is ready: the largest, and those that idle ones use


class Graph(Protocol):
    """What was captured; torch.cuda.CUDAGraph, or a test's."""

    def replay(self) -> None:
        """Make all launches again, with what stands in the memory that they read."""


Capture = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]
"""Runs a function, and returns what it launched and the tensor that each replay writes."""


class GraphedSteps:
    """Graphs by batch size, and the inputs that all of them read."""

    def __init__(
        self,
        forward: Callable[[StepInputs], Tensor],
        inputs: StaticInputs,
        capture: Capture,
    ) -> None:
        """`forward` may neither wait for the GPU nor choose by a tensor's content."""
        self._forward = forward
        self._inputs = inputs
        self._capture = capture
        self._sizes = graph_sizes(inputs.max_seqs)
        self._graphs: dict[int, tuple[Graph, Tensor]] = {}

    def warm_up(self) -> None:
        """Capture the largest, then the smallest; their steps write nowhere."""
        for size in (self._sizes[-1], *self._sizes[: AT_START - 1]):
            self._graph(size)

    def run(self, inputs: StepInputs) -> Tensor | None:
        """Logits [B, vocab], good until the next step. None where the step has no graph: a prompt's
        chunk among the decodes, adapters, or more sequences than the largest takes."""
        if not self._inputs.take(inputs):
            return None
        num_seqs = len(inputs.seq_lens)
        size = next(size for size in self._sizes if size >= num_seqs)
        graph, logits = self._graph(size)
        self._inputs.fill(inputs, size)
        graph.replay()
        return logits[:num_seqs]

    def _graph(self, size: int) -> tuple[Graph, Tensor]:
        if size not in self._graphs:
            own = self._inputs.padding(size)
            self._forward(own)  # libraries set themselves up on first use, which no graph may hold
            self._graphs[size] = self._capture(lambda: self._forward(own))
        return self._graphs[size]


def capture_on_gpu() -> Capture:
    """torch's capture, of which all graphs share one pool."""
    pool = torch.cuda.graph_pool_handle()

    def capture(function: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = function()
        return graph, out

    return capture
