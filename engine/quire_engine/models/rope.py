"""The table of rotary cosines and sines, made once at load."""

import math

import torch

from quire_engine.models.config import RopeConfig

_ROWS_AT_ONCE = 4096  # a table of 128k rows is 64 MB, and would take 100 MB more while it is made


def cos_sin_table(
    rope: RopeConfig, head_dim: int, num_positions: int, freq_factors: torch.Tensor | None = None
) -> torch.Tensor:
    """[num_positions, head_dim] float32: cosines in the first half of a row, sines in the second.

    `freq_factors` [head_dim / 2] divide the frequencies: how a GGUF carries llama3 scaling.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        frequencies = _llama3(frequencies, rope)
    if freq_factors is not None:
        frequencies = frequencies / freq_factors
    table = torch.empty(num_positions, head_dim)
    for begin in range(0, num_positions, _ROWS_AT_ONCE):
        rows = table[begin : begin + _ROWS_AT_ONCE]
        angles = torch.arange(begin, begin + len(rows)).float()[:, None] * frequencies[None, :]
        rows[:, : head_dim // 2] = angles.cos()
        rows[:, head_dim // 2 :] = angles.sin()
    return table


def _llama3(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between interpolated."""
    wavelengths = 2 * math.pi / frequencies
    context = rope.original_max_position_embeddings
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (context / wavelengths - low) / (high - low)
    between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    scaled = torch.where(wavelengths > context / low, frequencies / rope.factor, between)
    return torch.where(wavelengths < context / high, frequencies, scaled)
