"""A bound on what a step holds beside weights and KV cache. Pure.

A token keeps the residual and the normed hidden state, and beside them either fused QKV and
attention's output or the fused gate-up and its product; a sequence has one row of float32 logits,
once as computed and once sorted for sampling.
"""

from quire_engine.config import EngineConfig, token_budget
from quire_engine.models.config import ModelConfig
from quire_engine.weight_facts import DTYPE_BYTES, DeviceKind, compute_dtype


def activation_bytes(
    part: ModelConfig, vocab_size: int, engine: EngineConfig, device: DeviceKind
) -> int:
    """Bytes of a step's temporaries at most, whatever the batch is made of. `part` is one GPU's
    part of the model, which samples from the whole vocabulary."""
    tokens = token_budget(device, engine.max_num_batched_tokens, engine.max_num_seqs)
    heads = part.num_heads + 2 * part.num_kv_heads
    attention = (heads + part.num_heads) * part.head_dim
    feed_forward = 3 * part.intermediate_size
    token_values = 2 * part.hidden_size + max(attention, feed_forward)
    logits = engine.max_num_seqs * vocab_size * 4 * 2
    return tokens * token_values * DTYPE_BYTES[compute_dtype(engine, device)] + logits
