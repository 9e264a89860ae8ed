"""A decoder of the Llama family (Llama, SmolLM2, Qwen2, Qwen3): weights and forward pass.

The members differ in three switches of ModelConfig: a bias on QKV (Qwen2), a norm on each head's
query and key (Qwen3), an output head that is the embedding (SmolLM2, small Qwens). Query, key and
value are one matrix product, gate and up another. T counts the tokens of all sequences in a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

import quire_kernels as kernels
from quire_engine.lazy_memory import lazy_zeros
from quire_engine.models.config import ModelConfig
from quire_engine.models.lora import AdapterRows, LayerAdapter, add_lora


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. H hidden, D head_dim, I intermediate; packed weights are [outputs, inputs]."""

    input_norm: Tensor  # [H]
    qkv: kernels.PackedLinear  # [(num_heads + 2 * num_kv_heads) * D, H]
    qkv_bias: Tensor | None
    query_norm: Tensor | None  # [D]
    key_norm: Tensor | None  # [D]
    output: kernels.PackedLinear  # [H, num_heads * D]
    output_bias: Tensor | None
    post_norm: Tensor  # [H]
    gate_up: kernels.PackedLinear  # [2 * I, H]
    down: kernels.PackedLinear  # [H, I]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All of a model's weights, packed."""

    embedding: kernels.PackedLinear  # [vocab, H]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [H]
    head: kernels.PackedLinear  # [vocab, H]; the embedding itself where they are tied
    cos_sin: Tensor  # [max_model_len, D] float32


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one layer, [num_blocks, block_size, num_kv_heads, D] each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tokens, flattened, and where each finds its past."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, where each token's key and value go
    query_start_loc: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32, this step's tokens included
    block_tables: Tensor  # [B, max_blocks] int32
    logits_rows: Tensor  # [R] int64, rising: the tokens whose logits are wanted
    adapters: tuple[AdapterRows, ...] = ()  # whose rows are not the model's alone

    def to(self, device: torch.device) -> "StepInputs":
        """These on `device`; adapters are there already."""
        return StepInputs(
            token_ids=self.token_ids.to(device),
            positions=self.positions.to(device),
            slot_mapping=self.slot_mapping.to(device),
            query_start_loc=self.query_start_loc.to(device),
            seq_lens=self.seq_lens.to(device),
            block_tables=self.block_tables.to(device),
            logits_rows=self.logits_rows.to(device),
            adapters=self.adapters,
        )


Placed: TypeAlias = Sequence[tuple[LayerAdapter, slice]]
"""A layer's adapters, and the rows of each."""


class Decoder:
    """Runs steps. Holds no state but the weights; the KV cache is the caller's."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self._split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]

    def forward(
        self, inputs: StepInputs, caches: tuple[KVCache, ...], workspace: Tensor | None = None
    ) -> Tensor:
        """Logits [R, vocab] float32 of the rows that `inputs` asks for; fills the caches.

        `workspace` [workspace_values(...)] holds the hidden states, then the step's large
        temporaries, one after another, and in the end the logits: they are good until the next
        step. Both halves of a layer then write over the hidden states that they read. None: fresh
        memory for each. With it and no adapters, a step that samples from each of its tokens leaves
        all work to `kernels`.
        """
        eps, weights = self.config.rms_norm_eps, self.weights
        shape = (len(inputs.token_ids), self.config.hidden_size)
        residual_out, hidden_out = _views(workspace, shape, shape)
        workspace = None if workspace is None else workspace[2 * math.prod(shape) :]
        residual = kernels.embedding(inputs.token_ids, weights.embedding, out=residual_out)
        hidden = kernels.rms_norm(residual, weights.layers[0].input_norm, eps, out=hidden_out)
        next_norms = [layer.input_norm for layer in weights.layers[1:]] + [weights.final_norm]
        for number, (layer, cache, next_norm) in enumerate(
            zip(weights.layers, caches, next_norms, strict=True)
        ):
            placed = [(a.adapter.layers[number], a.tokens) for a in inputs.adapters]
            hidden = self._attention(layer, cache, hidden, inputs, workspace, placed)
            if layer is weights.layers[-1]:  # from here on only what is asked for
                if len(inputs.logits_rows) < len(hidden):
                    hidden, residual = hidden[inputs.logits_rows], residual[inputs.logits_rows]
                placed = [(a.adapter.layers[number], a.sampled) for a in inputs.adapters]
                if not len(hidden):  # chunks that reach no sequence's end
                    return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)
            hidden, residual = kernels.add_rms_norm(
                hidden, residual, layer.post_norm, eps, in_place=True
            )
            hidden = self._feed_forward(layer, hidden, workspace, placed)
            hidden, residual = kernels.add_rms_norm(hidden, residual, next_norm, eps, in_place=True)
        (out,) = _views(workspace, (len(hidden), self.config.vocab_size))
        return kernels.linear(hidden, weights.head, out=out).float()

    def _feed_forward(
        self, layer: LayerWeights, hidden: Tensor, workspace: Tensor | None, placed: Placed
    ) -> Tensor:
        inner = self.config.intermediate_size
        gate_up, product = _views(workspace, (len(hidden), 2 * inner), (len(hidden), inner))
        gate_up = kernels.linear(hidden, layer.gate_up, out=gate_up)
        add_lora(gate_up, hidden, [(adapter.gate_up, rows) for adapter, rows in placed])
        product = kernels.silu_mul(gate_up, out=product)
        down = kernels.linear(product, layer.down, out=None if workspace is None else hidden)
        add_lora(down, product, [(adapter.down, rows) for adapter, rows in placed])
        return down

    def _attention(
        self,
        layer: LayerWeights,
        cache: KVCache,
        hidden: Tensor,
        inputs: StepInputs,
        workspace: Tensor | None,
        placed: Placed,
    ) -> Tensor:
        """Attention block of [T, H] hidden states, as [T, H]."""
        config = self.config
        num_tokens, dim = hidden.shape[0], config.head_dim
        num_heads = config.num_heads + 2 * config.num_kv_heads
        qkv, attended = _views(
            workspace, (num_tokens, num_heads * dim), (num_tokens, config.num_heads, dim)
        )
        qkv = kernels.linear(hidden, layer.qkv, layer.qkv_bias, out=qkv)
        add_lora(qkv, hidden, [(adapter.qkv, rows) for adapter, rows in placed])
        heads = qkv.view(num_tokens, num_heads, dim)
        query, key, value = torch.split_with_sizes(heads, self._split, dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            kernels.rms_norm(query, layer.query_norm, config.rms_norm_eps, out=query)
            kernels.rms_norm(key, layer.key_norm, config.rms_norm_eps, out=key)
        kernels.rope(query, key, inputs.positions, self.weights.cos_sin)
        kernels.write_kv(key, value, cache.keys, cache.values, inputs.slot_mapping)
        attended = kernels.paged_attention(
            query,
            cache.keys,
            cache.values,
            inputs.query_start_loc,
            inputs.seq_lens,
            inputs.block_tables,
            config.scale,
            out=attended,
        )
        attended = attended.view(num_tokens, config.num_heads * dim)
        out = None if workspace is None else hidden
        output = kernels.linear(attended, layer.output, layer.output_bias, out=out)
        add_lora(output, attended, [(adapter.output, rows) for adapter, rows in placed])
        return output


def _views(workspace: Tensor | None, *shapes: tuple[int, ...]) -> tuple[Tensor | None, ...]:
    """Tensors of these shapes in the workspace, beside each other; None for each without one."""
    if workspace is None:
        return (None,) * len(shapes)
    views, begin = [], 0
    for shape in shapes:
        end = begin + math.prod(shape)
        views.append(workspace[begin:end].view(shape))
        begin = end
    return tuple(views)


def allocate_kv_cache(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[KVCache, ...]:
    """Zeroed caches for all layers, one behind the other. On a CPU a page becomes real only when it
    is written."""
    shape = (config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim)
    if device.type == "cpu" and dtype == torch.float32:
        caches = lazy_zeros(shape)
    else:
        caches = torch.zeros(shape, dtype=dtype, device=device)
    return tuple(KVCache(keys, values) for keys, values in caches)
