"""One request on its way through the core: its tokens, how far they are computed, its blocks."""

from dataclasses import dataclass, field

from quire_engine.messages import AddRequest, FinishReason, RequestId, SamplingParams


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt and answer in one list of tokens, of which the first `num_computed_tokens` are cached.

    The block manager owns `block_table` and `block_hashes`, the scheduler everything else that
    changes. A sequence that chases its own end (num_computed_tokens < num_tokens) is all there is:
    prefill, decode and recomputation after a preemption differ in the distance only.
    """

    request_id: RequestId
    sampling: SamplingParams
    cache_salt: str
    arrival_time: float  # seconds on the caller's clock
    num_prompt_tokens: int
    token_ids: list[int]
    seed: int = 0  # of the sampler
    adapter: str = ""  # name of its LoRA adapter; empty: the model itself
    adapter_hash: bytes = b""  # of that adapter's content
    num_computed_tokens: int = 0  # whose keys and values lie in the cache
    num_cached_tokens: int = 0  # of the prompt, taken from the prefix cache at first admission
    num_preemptions: int = 0
    priority: int = 0  # the lower, the earlier
    user: str = ""  # who shares fairly with other users
    arrival: int = 0  # its place among all that were ever queued, from 1
    first_decode: int = 0  # how many had been queued when it first decoded; 0: it has not yet
    admission: int = 0  # its place among all that were ever begun, from 1; 0: not begun yet
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of its full blocks, as far as known

    @classmethod
    def of(
        cls, request: AddRequest, arrival_time: float, seed: int = 0, adapter_hash: bytes = b""
    ) -> "Sequence":
        """The sequence that `request` asks for. `seed` counts when the request brings none."""
        return cls(
            request_id=request.request_id,
            sampling=request.sampling,
            cache_salt=request.cache_salt,
            arrival_time=arrival_time,
            num_prompt_tokens=len(request.prompt_token_ids),
            token_ids=list(request.prompt_token_ids),
            seed=seed if request.sampling.seed is None else request.sampling.seed,
            adapter=request.adapter,
            adapter_hash=adapter_hash,
            priority=request.priority,
            user=request.user,
        )

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among those that were begun: whose room is taken last, and given back first."""
        return (self.priority, self.admission)

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its next token is all that it lacks; else it is on its way through a prompt."""
        return self.num_generated_tokens > 0 and self.num_tokens - self.num_computed_tokens == 1

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Why the newest token is the last one; None when there is more to come."""
        sampling, generated = self.sampling, self.num_generated_tokens
        if generated >= sampling.min_tokens and self.token_ids[-1] in sampling.stop_token_ids:
            return "stop"
        if generated >= sampling.max_tokens or self.num_tokens >= max_model_len:
            return "length"
        return None
