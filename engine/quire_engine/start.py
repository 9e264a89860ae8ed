"""From a config to an engine that has run: device, weights, KV cache, warm-up."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import quire_kernels as kernels
from quire_engine.block_manager import BlockManager
from quire_engine.config import EngineConfig, token_budget
from quire_engine.engine import Engine
from quire_engine.errors import ConfigError, NoDevice
from quire_engine.fetch.verification import start_verification
from quire_engine.loader import LoadedModel, load_model
from quire_engine.machine import available_memory_bytes, num_cpus
from quire_engine.memory_plan import activation_bytes
from quire_engine.messages import CoreReady
from quire_engine.runner import ModelRunner
from quire_engine.scheduler import Scheduler

MAX_CPU_KV_BYTES = 4 << 30
CPU_KV_SHARE = 0.4  # of what the weights leave; the rest is for activations and the API process


@dataclass
class Stopwatch:
    """Seconds by start-up phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def lap(self, phase: str) -> None:
        """`phase` ends now."""
        now = time.monotonic()
        self.seconds[phase] = round(now - self._since, 3)
        self._since = now


def start_engine(
    config: EngineConfig,
    on_tensor: Callable[[], None] = lambda: None,
    stopwatch: Stopwatch | None = None,
) -> tuple[Engine, CoreReady]:
    """Load, allocate and run once. Raises ConfigError, NoDevice or a ModelError."""
    stopwatch = stopwatch or Stopwatch()
    device = choose_device(config)
    kernels.set_num_threads(config.num_threads or num_cpus())
    with start_verification(Path(config.model), config.verify_weights) as verification:
        model = load_model(config, device, on_tensor)
        stopwatch.lap("weights")
        num_blocks = choose_num_blocks(config, model)
        max_model_len = choose_max_model_len(config, model, num_blocks)
        budget = choose_token_budget(config, device)
        runner = ModelRunner(model, num_blocks, config.block_size)
        stopwatch.lap("kv_cache")
        runner.warm_up()
        stopwatch.lap("warmup")
        verification.wait(on_tensor)
    stopwatch.lap("verify")
    blocks = BlockManager(
        num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching
    )
    scheduler = Scheduler(
        blocks,
        max_num_seqs=config.max_num_seqs,
        token_budget=budget,
        max_model_len=max_model_len,
    )
    ready = CoreReady(
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=config.block_size,
        vocab_size=runner.vocab_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=budget,
        dtype=model.weight_dtype,
        device=device.type,
        kernels=kernels.isa() if device.type == "cpu" else kernels.backend(device.type).name,
        weight_bytes=model.weight_bytes,
        kv_cache_bytes=num_blocks * block_bytes(config, model),
        startup_seconds=stopwatch.seconds,
    )
    return Engine(scheduler, runner, time.monotonic, config.seed), ready


def choose_device(config: EngineConfig) -> torch.device:
    """The device to run on. NoDevice when the config asks for one that is not there."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise NoDevice(
            "device cuda needs a GPU that CUDA can see, got none on this machine; give the pod "
            "one, or run on the CPU with --device cpu"
        )
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")


def choose_token_budget(config: EngineConfig, device: torch.device) -> int:
    """Tokens a step, at least one for each sequence."""
    return token_budget(device.type, config.max_num_batched_tokens, config.max_num_seqs)


def choose_num_blocks(config: EngineConfig, model: LoadedModel) -> int:
    """Blocks of the KV cache. ConfigError when there is no room for a single one."""
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override
    room = config.kv_cache_memory_bytes
    if room is None:
        room = _cpu_room() if model.device.type == "cpu" else _gpu_room(config, model)
    num_blocks = max(0, room) // block_bytes(config, model)
    if num_blocks < 1:
        raise ConfigError(
            f"the KV cache needs at least one block of {block_bytes(config, model)} bytes, got "
            f"room for {room} bytes; give the engine more memory or a smaller model"
        )
    return num_blocks


def choose_max_model_len(config: EngineConfig, model: LoadedModel, num_blocks: int) -> int:
    """The longest context: what was asked for, or what both the model and the cache can hold."""
    capacity = num_blocks * config.block_size
    asked = config.max_model_len
    if asked is None:
        return min(model.decoder.config.max_model_len, capacity)
    if asked > capacity:
        raise ConfigError(
            f"max_model_len must be <= {capacity} tokens (the KV cache's {num_blocks} blocks), got "
            f"{asked}; lower --max-model-len or raise --kv-cache-memory-bytes"
        )
    return asked


def block_bytes(config: EngineConfig, model: LoadedModel) -> int:
    """Bytes of one block over all layers."""
    per_token = model.decoder.config.kv_bytes_per_token(model.activation_dtype.itemsize)
    return per_token * config.block_size


def _cpu_room() -> int:
    return min(MAX_CPU_KV_BYTES, int(CPU_KV_SHARE * available_memory_bytes()))


def _gpu_room(config: EngineConfig, model: LoadedModel) -> int:
    """Share of the GPU less the weights and a full step's activations."""
    _, total = torch.cuda.mem_get_info(model.device)
    dtype = str(model.activation_dtype).removeprefix("torch.")
    budget = choose_token_budget(config, model.device)
    peak = activation_bytes(model.decoder.config, dtype, budget, config.max_num_seqs)
    return int(total * config.gpu_memory_utilization) - model.weight_bytes - peak
