"""The engine's one frozen config: what the API process hands the core process as a JSON file."""

import math
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from quire_engine.errors import ConfigError

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Quantization: TypeAlias = Literal["int8", "int4"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
LoadFormat: TypeAlias = Literal["auto", "dummy"]
VerifyMode: TypeAlias = Literal["auto", "always", "never"]

TOKEN_BUDGETS = {"cpu": 512, "cuda": 8192}
BUILT_TENSOR_PARALLEL = 1  # GPUs that can share one model


class LoraModule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One LoRA adapter, and what requests call it."""

    name: str
    path: str  # a folder in PEFT's format

    @staticmethod
    def parse(text: str) -> "LoraModule":
        """NAME=PATH, or a JSON object with name and path, as vLLM's --lora-modules takes them."""
        if text.startswith("{"):
            return LoraModule._from_json(text)
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(
                f"lora_modules must be NAME=PATH, got {text!r}; write --lora-modules "
                "support=/models/support"
            )
        return LoraModule(name, path)

    @staticmethod
    def _from_json(text: str) -> "LoraModule":
        try:
            fields = msgspec.json.decode(text, type=dict[str, str | None])
            fields.pop("base_model_name", None)  # vLLM's, for cards; there is one base model here
            module = msgspec.convert(fields, LoraModule)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                "lora_modules in JSON must be an object of name, path and base_model_name, got "
                f"{text!r} ({error}); or write NAME=PATH"
            ) from error
        if not (module.name and module.path):
            raise ConfigError(
                f"lora_modules must have a name and a path, got {text!r}; requests name the adapter"
            )
        return module


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the core process is told. Raises ConfigError when a value breaks its rule.

    `None` means that the engine decides, once it has read the model and looked at the machine.
    """

    model: str
    """Folder with config.json and safetensors, or one .gguf file. No default."""

    dtype: Dtype = "auto"
    """Number format of weights and activations. auto: on a CPU the checkpoint's own weights under
    float32 activations (widening bf16 in registers loses nothing), on a GPU bfloat16."""

    quantization: Quantization | None = None
    """What float weights are rounded to while they are loaded, on a CPU only. int8: one scale for
    every 64 of a row, half the bytes of bfloat16. int4: a scale and a minimum for every 32, a third
    of the bytes; embedding and head in int8. None: nothing."""

    device: Device = "auto"
    """auto: the GPU where there is one, else the CPU."""

    lora_modules: tuple[LoraModule, ...] = ()
    """LoRA adapters that are served beside the model, each under a name of its own. Their weights
    are never quantized."""

    load_format: LoadFormat = "auto"
    """dummy: random weights of the right shapes, for measuring without a checkpoint."""

    verify_weights: VerifyMode = "auto"
    """Hash the files against the fetch's manifest while they load, and serve nothing before that is
    done. auto: where there is a manifest; always: refuse a model without one; never: sizes and
    headers only."""

    max_model_len: int | None = None
    """Longest prompt + answer, in tokens. None: the model's own limit."""

    max_num_seqs: int = 128
    """Sequences in one step. 128 is vLLM's default on a CPU; beyond it a step only gets longer."""

    max_num_batched_tokens: int | None = None
    """Token budget of one step. None: 512 on a CPU (about a second of SmolLM2 prefill on two
    cores), 8192 on a GPU. Beside decodes prompts take less of it: max_decode_slowdown."""

    max_decode_slowdown: float = 1.75
    """How many times longer a step with decodes may take because parts of prompts run beside them,
    by the model of past steps' times, with 4 prompt tokens a step at least. 0: prompts take all
    that decodes leave of the token budget, which has them done earlier."""

    block_size: int = 16
    """Tokens in one block of the KV cache, and the unit of the prefix cache. 16 wastes under 4 %
    (arXiv 2309.06180)."""

    num_gpu_blocks_override: int | None = None
    """Blocks in the KV cache, whatever the memory says. vLLM's name, on a CPU too. None: from
    memory."""

    kv_cache_memory_bytes: int | None = None
    """Bytes of KV cache. None: what gpu_memory_utilization leaves beside weights and activations
    (memory_plan.py), on a CPU at most 4 GiB."""

    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory, or of the container's limit on a CPU, that the engine may hold in
    all, 0..1. 0.9 leaves room to the driver, and to the kernel's buffers and page tables."""

    enable_prefix_caching: bool = True
    """Keep full blocks of finished requests for later ones with the same prefix."""

    tensor_parallel_size: int = 1
    """GPUs that share one model. Plans count with more; only 1 is built (`require_built`)."""

    seed: int = 0
    """Where the seeds of requests that bring none are derived from."""

    num_threads: int | None = None
    """CPU threads of the kernels. None: what the cgroup's quota gives."""

    def __post_init__(self) -> None:
        _require(
            bool(self.model), "model must name a folder or a .gguf file", self.model, "give one"
        )
        names = [module.name for module in self.lora_modules]
        _require(
            len(set(names)) == len(names),
            "lora_modules must each have a name of its own",
            ", ".join(names),
            "name each --lora-modules once",
        )
        for name in (
            "max_model_len",
            "max_num_batched_tokens",
            "num_gpu_blocks_override",
            "kv_cache_memory_bytes",
            "num_threads",
            "max_num_seqs",
            "tensor_parallel_size",
        ):
            value = getattr(self, name)
            _require(
                value is None or value >= 1, f"{name} must be >= 1", value, f"raise --{_flag(name)}"
            )
        _require(
            self.block_size in (8, 16, 32),
            "block_size must be 8, 16 or 32",
            self.block_size,
            "leave out --block-size for 16",
        )
        _require(
            0 < self.gpu_memory_utilization <= 1,
            "gpu_memory_utilization must be in (0, 1]",
            self.gpu_memory_utilization,
            "leave out --gpu-memory-utilization for 0.9",
        )
        slowdown = self.max_decode_slowdown
        _require(
            slowdown == 0 or 1 < slowdown < math.inf,
            "max_decode_slowdown must be > 1, or 0 for no bound",
            slowdown,
            "leave out --max-decode-slowdown for 1.75",
        )
        budget = self.max_num_batched_tokens
        _require(
            budget is None or budget >= self.max_num_seqs,
            f"max_num_batched_tokens must be >= max_num_seqs ({self.max_num_seqs}), so that each "
            "running sequence can take a token a step",
            budget,
            "raise --max-num-batched-tokens or lower --max-num-seqs",
        )

    def to_json(self) -> bytes:
        """This config as the JSON that `read` takes."""
        return msgspec.json.encode(self)

    @staticmethod
    def read(path: Path) -> "EngineConfig":
        """The config in the JSON file `path`. Unknown keys and bad values are ConfigErrors."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=EngineConfig)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"the engine's config must be a JSON object of EngineConfig's fields, "
                f"got {path}: {error}; write it with EngineConfig.to_json()"
            ) from error


def require_built(config: EngineConfig) -> None:
    """ConfigError for what can be planned and not be served."""
    _require(
        config.tensor_parallel_size <= BUILT_TENSOR_PARALLEL,
        "tensor_parallel_size must be 1 (one device a pod)",
        config.tensor_parallel_size,
        "run more replicas instead",
    )


def token_budget(device: str, asked: int | None, max_num_seqs: int) -> int:
    """Tokens a step on `device` (cpu or cuda), at least one for each sequence."""
    return asked or max(TOKEN_BUDGETS[device], max_num_seqs)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _require(holds: bool, rule: str, got: object, way_out: str) -> None:
    if not holds:
        raise ConfigError(f"{rule}, got {got!r}; {way_out}")
