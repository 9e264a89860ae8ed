"""What the API process and the core process say to each other.

msgspec structs, encoded as MessagePack, over two ZeroMQ sockets that the API process binds before
it starts the core (ipc:// in a private folder):

    requests  PUSH (API)  -> PULL (core)   one `ToCore` a frame
    outputs   PULL (API)  <- PUSH (core)   one `FromCore` a frame

Order is kept within a socket. A request is finished when an `Output` with a finish_reason arrives;
an aborted one gets no further output. Token ids, not text, cross this border: the API process
tokenizes and detokenizes, the core never sees a string of the user's.

What there is one of a token is encoded without its fields' names, and is nothing that the garbage
collector would have to look at (none of it can be part of a cycle).
"""

from typing import Literal, NewType, TypeAlias

import msgspec

RequestId = NewType("RequestId", str)

FinishReason: TypeAlias = Literal["stop", "length", "abort", "error"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence's tokens are chosen. Validated by the API before it gets here."""

    temperature: float = 1.0  # below 1e-5 is greedy: logits over less overflow float32
    top_p: float = 1.0  # in (0, 1]
    top_k: int = 0  # 0 keeps the whole vocabulary
    min_p: float = 0.0  # in [0, 1], relative to the likeliest token
    seed: int | None = None  # None: drawn by the core, once a request
    max_tokens: int = 16  # tokens generated at most
    min_tokens: int = 0  # stop ids are masked before that
    stop_token_ids: tuple[int, ...] = ()  # end-of-sequence ids included unless ignore_eos
    num_logprobs: int | None = None  # None: no log-probabilities; 0: the chosen token's alone


class AddRequest(msgspec.Struct, frozen=True, kw_only=True, tag="add"):
    """One sequence to complete. A client's `n` choices are n of these."""

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    cache_salt: str = ""  # part of the prefix cache's hash chain: tenants do not see each other's
    adapter: str = ""  # name of a LoRA adapter in the core's config; empty: the model itself
    priority: int = 0  # the lower, the earlier; 64 bits, signed
    user: str = ""  # whose fair share it takes from while others wait


class AbortRequests(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """Drop these requests; their blocks are free before the next step. Unknown ids are ignored."""

    request_ids: tuple[RequestId, ...]


class ResetPrefixCache(msgspec.Struct, frozen=True, tag="reset_prefix_cache"):
    """Forget every prefix: what is sent after this finds no block that was full before it."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish nothing, free everything, exit 0. The API sends it once it has drained."""


ToCore: TypeAlias = AddRequest | AbortRequests | ResetPrefixCache | Shutdown


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Natural-log probabilities at one position, before temperature and truncation."""

    chosen: float
    top_token_ids: tuple[int, ...]  # likeliest first
    top_logprobs: tuple[float, ...]


class Output(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What one step gave one request."""

    request_id: RequestId
    token_ids: tuple[int, ...]  # newly generated, in order; the stop id included when one ended it
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # set when finish_reason is "stop"
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache, at first admission
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str = ""  # one sentence, when finish_reason is "error"


class CoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """The core's state after a step: gauges as they are, counters since start."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float  # blocks held by requests / all blocks, 0..1
    num_preemptions: int
    prefix_cache_queries: int  # prompt tokens looked up, recomputation after preemption left out
    prefix_cache_hits: int  # of these, found
    prompt_tokens: int  # prompt tokens computed or found in the cache
    generation_tokens: int
    step_tokens: int  # tokens in this step's batch
    queue_seconds: tuple[float, ...] = ()  # of each request first scheduled in this step
    num_free_blocks: int = 0
    num_blocks: int = 0
    running_adapters: tuple[str, ...] = ()  # named by sequences, sorted
    waiting_adapters: tuple[str, ...] = ()


class StepOutputs(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """One step's outputs and the state after it. Sent without outputs when the core turns idle."""

    outputs: tuple[Output, ...]
    stats: CoreStats


class CoreReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded and one forward pass has run."""

    max_model_len: int
    num_blocks: int
    block_size: int
    vocab_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype: str
    device: str
    kernels: str  # instruction set or backend that runs, for /version
    weight_bytes: int
    kv_cache_bytes: int
    startup_seconds: dict[str, float]  # by phase: imports, plan, weights, kv_cache, warmup, verify


class CoreFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The core cannot go on; its process ends with `exit_code` right after this."""

    exit_code: int
    reason: str  # CamelCase, as in the termination message
    message: str  # rule + input + way out


FromCore: TypeAlias = StepOutputs | CoreReady | CoreFailed
