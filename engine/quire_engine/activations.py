"""What a step, or loading, holds at most beside weights and KV cache, whatever the batch is. Pure.

On a CPU the large temporaries lie in one workspace: two hidden states a token, the residual and the
normed one; behind them, one after another, fused QKV and attention's output, or the fused gate-up
and its product, for each token of the budget; then the logits of each sequence. Beside it the
hidden states of the rows that sample; or, when these are gone, what the sampler takes for a few
rows at a time. And a few megabytes that no tensor holds, recorded decode steps among them. This is
true with compiled kernels: the torch reference makes temporaries of its own.

On a GPU torch's allocator keeps freed memory for the next step, and what was freed in one size may
not serve another: there the parts add up, and each half of a layer has an output of its own. The
graphs of decode steps hold such a step of --max-num-seqs tokens besides, and what the driver keeps.
"""

from quire_engine.config import EngineConfig, token_budget
from quire_engine.models.config import ModelConfig
from quire_engine.weight_facts import DTYPE_BYTES, DeviceKind, compute_dtype

FLOAT_BYTES = DTYPE_BYTES["float32"]  # of logits, and of everything on a CPU
DRAWN_ROWS = 8  # that the sampler draws from at a time
# Objects of Python's, what torch sets up with an operation's first use, holes in the heap. SmolLM2:
# 4 MB where all sequences are greedy, 8 MB where all draw and ask for log probabilities.
UNTRACKED_BYTES = 6 << 20
# What the driver keeps of a graph of some hundred launches. Not measured: no GPU has run it yet.
GRAPH_BYTES = 4 << 20
# What loading takes beside the packed weights, before any step: a quarter of a million values at
# a time (quire_kernels' VALUES_AT_ONCE), up to 14 bytes each on their way from a GGUF's blocks, and
# twice in bfloat16. Sixteen rows are the least: those of more than 28,000 values take more.
LOADING_BYTES = 8 << 20


def activation_bytes(
    part: ModelConfig,
    vocab_size: int,
    engine: EngineConfig,
    device: DeviceKind,
    lora_values: int = 0,
) -> int:
    """Bytes of a step's temporaries. `part` is one GPU's part of the model, which samples from the
    whole vocabulary; `lora_values` are an adapter's for each token, beside hidden states."""
    tokens = token_budget(device, engine.max_num_batched_tokens, engine.max_num_seqs)
    rows = engine.max_num_seqs
    if device == "cpu":
        beside = rows * 2 * part.hidden_size + tokens * lora_values
        values = workspace_values(part, tokens, rows) + max(beside, _drawn(vocab_size))
        return max(values * FLOAT_BYTES + UNTRACKED_BYTES, LOADING_BYTES)
    value_bytes = DTYPE_BYTES[compute_dtype(engine, device)]
    logits = rows * vocab_size * (value_bytes + FLOAT_BYTES)
    step = _gpu_step_values(part, tokens, rows, lora_values) * value_bytes + logits
    graphs = _gpu_step_values(part, rows, rows, 0) * value_bytes + logits
    graphs += GRAPH_BYTES * len(graph_sizes(rows))
    return step + graphs + _drawn(vocab_size) * FLOAT_BYTES


def _gpu_step_values(part: ModelConfig, tokens: int, rows: int, lora_values: int) -> int:
    hidden = (tokens + rows) * 2 * part.hidden_size
    hidden += tokens * max(_normed_heads(part), lora_values)
    return hidden + tokens * (part.hidden_size + _layer_values(part))


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes of decode steps that a GPU has a graph for, rising: powers of two and, from 32
    on, what lies halfway, so that at most half of a small batch and a third of a large one is
    padding."""
    powers = [1 << exponent for exponent in range(max_num_seqs.bit_length())]
    halfway = [power + power // 2 for power in powers if power >= 32]
    return sorted({size for size in powers + halfway if size < max_num_seqs} | {max_num_seqs})


def workspace_values(model: ModelConfig, tokens: int, rows: int) -> int:
    """Values that a step of so many tokens and rows of logits needs of a workspace."""
    hidden = tokens * 2 * model.hidden_size
    return hidden + max(tokens * _layer_values(model), rows * model.vocab_size)


def _layer_values(model: ModelConfig) -> int:
    """Of a token, in the wider half of a layer."""
    heads = model.num_heads + 2 * model.num_kv_heads
    attention = (heads + model.num_heads) * model.head_dim
    return max(attention, 3 * model.intermediate_size)


def _normed_heads(model: ModelConfig) -> int:
    """Of a token: query and key normed, and what torch makes on the way, where a model norms
    heads."""
    if not model.qk_norm:
        return 0
    return (model.num_heads + max(model.num_heads, 2 * model.num_kv_heads)) * model.head_dim


def _drawn(vocab_size: int) -> int:
    """Of the sampler: 16 bytes a value of the rows that it draws from, 48 a value of one row."""
    return (16 * DRAWN_ROWS + 48) // FLOAT_BYTES * vocab_size
