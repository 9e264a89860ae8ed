"""Runs a batch: from the scheduler's chunks to the model's tensors, and to logits."""

from collections.abc import Mapping
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from quire_engine.batch import Batch, Chunk
from quire_engine.graphed_steps import GraphedSteps, capture_on_gpu
from quire_engine.lazy_memory import PagesAhead
from quire_engine.loader import LoadedModel
from quire_engine.messages import RequestId, SamplingParams
from quire_engine.models.decoder import StepInputs, allocate_kv_cache
from quire_engine.models.lora import Adapter, AdapterRows
from quire_engine.recorded_steps import RecordedSteps
from quire_engine.sequence import Sequence
from quire_engine.static_inputs import StaticInputs


class ModelRunner:
    """Owns the memory of KV cache and workspace; the block manager owns which block is whose."""

    def __init__(
        self,
        model: LoadedModel,
        num_blocks: int,
        block_size: int,
        workspace: Tensor | None = None,
        adapters: Mapping[str, Adapter] | None = None,
        *,
        max_num_seqs: int = 1,
    ) -> None:
        """`workspace` is for `Decoder.forward`, as large as the largest step asks for. `adapters`
        are those that sequences may name; of `max_num_seqs` is the largest step of decodes that a
        GPU has a graph for."""
        self.vocab_size = model.decoder.config.vocab_size
        self._device = model.device
        self._block_size = block_size
        self._adapters = dict(adapters or {})
        config = model.decoder.config
        caches = allocate_kv_cache(
            config, num_blocks, block_size, model.activation_dtype, model.device
        )
        self._pages_ahead = None
        if model.device.type == "cpu":
            self._pages_ahead = PagesAhead([part for c in caches for part in (c.keys, c.values)])
        self._forward = partial(model.decoder.forward, caches=caches, workspace=workspace)
        self._recorded: RecordedSteps | GraphedSteps | None = None
        max_blocks = min(num_blocks, -(-config.max_model_len // block_size))
        if workspace is not None:
            self._recorded = RecordedSteps(self._forward, max_blocks)
        elif model.device.type == "cuda":
            inputs = StaticInputs(max_num_seqs, max_blocks, model.device)
            self._recorded = GraphedSteps(self._forward, inputs, capture_on_gpu())

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Logits [R, vocab] float32: a row for each chunk that samples, in order. They are good
        until the next run."""
        if self._pages_ahead is not None:
            self._pages_ahead.used(max(chunk.sequence.block_table[-1] for chunk in batch.chunks))
        inputs = build_inputs(batch.chunks, self._block_size, self._adapters)
        logits = None if self._recorded is None else self._recorded.run(inputs)
        return self._forward(inputs.to(self._device)) if logits is None else logits

    @torch.inference_mode()
    def warm_up(self) -> None:
        """One forward pass, of the model and of each adapter, that writes to block 0, which nobody
        holds yet; on a GPU graphs are captured before."""
        if isinstance(self._recorded, GraphedSteps):
            self._recorded.warm_up()
        for adapter in ("", *self._adapters):
            sequence = Sequence(
                request_id=RequestId("warm-up"), sampling=SamplingParams(), cache_salt="",
                arrival_time=0.0, num_prompt_tokens=1, token_ids=[0], block_table=[0],
                adapter=adapter,
            )  # fmt: skip
            self.run(Batch((Chunk(sequence, 1, samples=True),)))


def build_inputs(
    chunks: tuple[Chunk, ...], block_size: int, adapters: Mapping[str, Adapter] | None = None
) -> StepInputs:
    """The tensors of a step on the host, flattened over its chunks, of which those of one adapter
    lie side by side."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    ends: list[int] = [0]
    seq_lens: list[int] = []
    for chunk in chunks:
        sequence, begin = chunk.sequence, chunk.sequence.num_computed_tokens
        end, table = begin + chunk.num_tokens, sequence.block_table
        token_ids += sequence.token_ids[begin:end]
        positions += range(begin, end)
        slots += [table[p // block_size] * block_size + p % block_size for p in range(begin, end)]
        ends.append(len(token_ids))
        seq_lens.append(end)
    rows = [end - 1 for end, chunk in zip(ends[1:], chunks, strict=True) if chunk.samples]
    return StepInputs(
        token_ids=_tensor(token_ids, np.int64),
        positions=_tensor(positions, np.int64),
        slot_mapping=_tensor(slots, np.int64),
        query_start_loc=_tensor(ends, np.int32),
        seq_lens=_tensor(seq_lens, np.int32),
        block_tables=_block_tables(chunks),
        logits_rows=_tensor(rows, np.int64),
        adapters=_adapter_rows(chunks, adapters or {}),
    )


def _adapter_rows(
    chunks: tuple[Chunk, ...], adapters: Mapping[str, Adapter]
) -> tuple[AdapterRows, ...]:
    """Which rows are whose, in one pass; empty where no sequence names an adapter."""
    found: list[AdapterRows] = []
    token = sampled = 0
    for adapter, group in groupby(chunks, key=lambda chunk: chunk.sequence.adapter):
        members = list(group)
        tokens = sum(chunk.num_tokens for chunk in members)
        samples = sum(chunk.samples for chunk in members)
        if adapter:
            rows = slice(token, token + tokens), slice(sampled, sampled + samples)
            found.append(AdapterRows(adapters[adapter], *rows))
        token, sampled = token + tokens, sampled + samples
    return tuple(found)


def _block_tables(chunks: tuple[Chunk, ...]) -> Tensor:
    """[B, max_blocks] int32; what lies beyond a sequence's end is 0 and never read."""
    longest = max(len(chunk.sequence.block_table) for chunk in chunks)
    tables = np.zeros((len(chunks), longest), np.int32)
    for row, chunk in enumerate(chunks):
        table = chunk.sequence.block_table
        tables[row, : len(table)] = table
    return torch.from_numpy(tables)


def _tensor(values: list[int], dtype: type[np.integer]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype))
