"""From logits to tokens: greedy, or drawn after temperature, min-p, top-k and top-p.

A draw takes one uniform number from a hash of (the request's seed, the token's position) and walks
the cumulative distribution in the order of the vocabulary. No generator state: neither the batch,
nor a preemption, nor a restart changes what a seed gives.
"""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

import quire_kernels as kernels
from quire_engine.activations import DRAWN_ROWS
from quire_engine.messages import SamplingParams, TokenLogprobs
from quire_engine.sequence import Sequence

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5  # a temperature; 1e-40 is 0 in float32, and logits over it are not numbers
TOP_P_CANDIDATES = 1024  # sorted first; nearly always they hold top_p of the mass


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One row's outcome: a token, or the sentence that says why there is none."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str = ""


def sample(logits: Tensor, sequences: Items[Sequence]) -> list[SampledToken]:
    """One token for each of `sequences` from its row of `logits` [R, vocab] float32.

    `logits` may be overwritten. A row that cannot be sampled fails its own sequence only.
    """
    if not sequences:
        return []
    try:
        return _sample_rows(logits, sequences)
    except Exception:
        logger.exception("sampling %d rows together failed; now one by one", len(sequences))
        return [_sample_row(row, sequence) for row, sequence in zip(logits, sequences, strict=True)]


def _sample_row(row: Tensor, sequence: Sequence) -> SampledToken:
    try:
        return _sample_rows(row[None], [sequence])[0]
    except Exception as error:
        return SampledToken(None, error=f"its token could not be sampled: {error!r}")


def _sample_rows(logits: Tensor, sequences: Items[Sequence]) -> list[SampledToken]:
    masked = _mask_early_stops(logits, sequences)
    token_ids = kernels.argmax(logits)  # -1 where a row's logits are not numbers
    is_number = (token_ids >= 0).tolist()
    drawn = [
        row for row, sequence in enumerate(sequences)
        if sequence.sampling.temperature >= GREEDY_BELOW and is_number[row]
    ]  # fmt: skip
    for begin in range(0, len(drawn), DRAWN_ROWS):
        rows = drawn[begin : begin + DRAWN_ROWS]
        token_ids[rows] = draw(logits[rows], [sequences[row] for row in rows])
    for row, (ids, values) in masked.items():
        logits[row, ids] = values
    return [
        SampledToken(token_id, _logprobs(logits[row], token_id, sequences[row].sampling))
        if is_number[row]
        else SampledToken(None, error="the model's logits are not numbers (NaN or infinite)")
        for row, token_id in enumerate(token_ids.tolist())
    ]


def draw(logits: Tensor, sequences: Items[Sequence]) -> Tensor:
    """One drawn token id [R] int64 a row of `logits` [R, vocab].

    Takes 16 bytes a value of them, and 48 more a value of one row.
    """
    temperatures = [sequence.sampling.temperature for sequence in sequences]
    scale = torch.tensor(temperatures, device=logits.device)[:, None]
    weights = torch.softmax(logits / scale, dim=1)
    for row, sequence in enumerate(sequences):
        _truncate(weights[row], sequence.sampling)
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    uniforms = [uniform(sequence.seed, sequence.num_tokens) for sequence in sequences]
    thresholds = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    found = torch.searchsorted(cumulative, thresholds * cumulative[:, -1:], right=True)
    return found[:, 0].clamp_(max=logits.shape[1] - 1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from 53 bits of a hash of `seed` and `position`."""
    digest = blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _truncate(weights: Tensor, sampling: SamplingParams) -> None:
    """Zero, in place, what min-p, top-k and top-p leave out of `weights` [vocab], in that order."""
    if sampling.min_p > 0:
        weights[weights < sampling.min_p * weights.max()] = 0
    if sampling.top_k > 0 or sampling.top_p < 1:
        values, ids = _kept(weights, sampling)
        weights.zero_()
        weights[ids] = values


def _kept(weights: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """The weights that top-k and top-p keep, and their ids."""
    vocab_size = weights.shape[0]
    num_kept = min(sampling.top_k or vocab_size, vocab_size)
    total = None if sampling.top_k else weights.sum(dtype=torch.float64)
    # The mass that top-k leaves is known only when all that it keeps are there.
    sizes = (num_kept,) if sampling.top_k else (min(TOP_P_CANDIDATES, num_kept), num_kept)
    for num_candidates in sizes:
        values, ids = weights.topk(num_candidates)
        before = values.cumsum(dim=0, dtype=torch.float64) - values
        limit = sampling.top_p * (before[-1] + values[-1] if total is None else total)
        if num_candidates == num_kept or before[-1] >= limit:
            break
    keep = (before < limit) | (before == 0)  # the likeliest one stays, whatever top_p is
    return values[keep], ids[keep]


def _mask_early_stops(
    logits: Tensor, sequences: Items[Sequence]
) -> dict[int, tuple[list[int], Tensor]]:
    """Rule out the stop ids of sequences that have not reached min_tokens. What stood there, by
    row: log probabilities are the model's own."""
    masked = {}
    for row, sequence in enumerate(sequences):
        ids = list(sequence.sampling.stop_token_ids)
        if ids and sequence.num_generated_tokens < sequence.sampling.min_tokens:
            masked[row] = (ids, logits[row, ids])
            logits[row, ids] = float("-inf")
    return masked


def _logprobs(row: Tensor, token_id: int, sampling: SamplingParams) -> TokenLogprobs | None:
    if sampling.num_logprobs is None:
        return None
    logprobs = torch.log_softmax(row, dim=0)
    top = logprobs.topk(sampling.num_logprobs)
    return TokenLogprobs(
        chosen=float(logprobs[token_id]),
        top_token_ids=tuple(top.indices.tolist()),
        top_logprobs=tuple(top.values.tolist()),
    )
