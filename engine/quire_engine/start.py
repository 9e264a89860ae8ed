"""From a config to an engine that has run: device, weights, KV cache, warm-up."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

import quire_kernels as kernels
from quire_engine.activations import workspace_values
from quire_engine.adapter_loader import load_adapter
from quire_engine.adapters import AdapterFacts
from quire_engine.allocator import exact_allocations
from quire_engine.block_manager import BlockManager
from quire_engine.config import EngineConfig, LoraModule, require_built
from quire_engine.engine import Engine
from quire_engine.errors import AdapterUnusable, DoesNotFit, ModelError, NoDevice
from quire_engine.fetch.headers import read_local, read_local_adapter
from quire_engine.fetch.manifest import comes_with
from quire_engine.fetch.verification import Verification, start_verification
from quire_engine.lazy_memory import lazy_zeros
from quire_engine.loader import LoadedModel, load_model, matrix_dtype
from quire_engine.machine import engine_memory_bytes, num_cpus
from quire_engine.memory_plan import MemoryPlan, make_plan, plan_rows
from quire_engine.messages import CoreReady
from quire_engine.models.config import ModelConfig
from quire_engine.models.lora import Adapter
from quire_engine.runner import ModelRunner
from quire_engine.scheduler import Scheduler
from quire_engine.step_time import StepTime
from quire_engine.weight_facts import DeviceKind

logger = logging.getLogger(__name__)


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
    require_built(config)
    device = choose_device(config)
    kernels.set_num_threads(config.num_threads or num_cpus())
    with _verifications(config) as verifications:
        plan = plan_memory(config, device)
        stopwatch.lap("plan")
        assert plan.num_blocks is not None, "the memory is known here"
        with exact_allocations():
            model = load_model(config, device, on_tensor)
            adapters = _load_adapters(config, model, on_tensor)
            stopwatch.lap("weights")
            workspace = _workspace(model, plan)
            runner = ModelRunner(
                model, plan.num_blocks, config.block_size, workspace, adapters,
                max_num_seqs=config.max_num_seqs,
            )  # fmt: skip
        stopwatch.lap("kv_cache")
        runner.warm_up()
        stopwatch.lap("warmup")
        _wait_for(verifications, config, on_tensor)
    stopwatch.lap("verify")
    blocks = BlockManager(
        plan.num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching
    )
    scheduler = Scheduler(
        blocks,
        max_num_seqs=config.max_num_seqs,
        token_budget=plan.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
        step_time=StepTime(config.max_decode_slowdown),
    )
    ready = CoreReady(
        max_model_len=plan.max_model_len,
        num_blocks=plan.num_blocks,
        block_size=config.block_size,
        vocab_size=runner.vocab_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        dtype=model.weight_dtype,
        device=device.type,
        kernels=kernels.isa() if device.type == "cpu" else kernels.backend(device.type).name,
        weight_bytes=model.weight_bytes,
        kv_cache_bytes=plan.num_blocks * plan.block_bytes,
        startup_seconds=stopwatch.seconds,
    )
    hashes = {name: adapter.content_hash for name, adapter in adapters.items()}
    return Engine(scheduler, runner, time.monotonic, config.seed, hashes), ready


@contextmanager
def _verifications(config: EngineConfig) -> Iterator[list[Verification]]:
    """Of the model and of each adapter, beside the loading."""
    mode = config.verify_weights
    with ExitStack() as stack:
        started = [stack.enter_context(start_verification(Path(config.model), mode))]
        for module in config.lora_modules:
            with _of_adapter(config, module):
                verification = start_verification(Path(module.path), mode)
                started.append(stack.enter_context(verification))
        yield started


def _wait_for(
    verifications: list[Verification], config: EngineConfig, on_progress: Callable[[], None]
) -> None:
    model, *adapters = verifications
    model.wait(on_progress)
    for module, verification in zip(config.lora_modules, adapters, strict=True):
        with _of_adapter(config, module):
            verification.wait(on_progress)


@contextmanager
def _of_adapter(config: EngineConfig, module: LoraModule) -> Iterator[None]:
    """Bad files of an adapter that came not with the model end otherwise than the model's own,
    after which the operator would fetch a healthy model anew, again and again."""
    try:
        yield
    except ModelError as error:
        if comes_with(Path(config.model), Path(module.path)):
            raise
        raise AdapterUnusable(f"adapter {module.name}: {error}") from error


def _read_adapters(config: EngineConfig, model: ModelConfig) -> tuple[AdapterFacts, ...]:
    facts = []
    for module in config.lora_modules:
        with _of_adapter(config, module):
            facts.append(read_local_adapter(Path(module.path), model))
    return tuple(facts)


def _load_adapters(
    config: EngineConfig, model: LoadedModel, on_tensor: Callable[[], None]
) -> dict[str, Adapter]:
    dtype = matrix_dtype(config, model.device)
    adapters = {}
    for module in config.lora_modules:
        with _of_adapter(config, module):
            adapters[module.name] = load_adapter(Path(module.path), model, dtype, on_tensor)
    return adapters


def plan_memory(config: EngineConfig, device: torch.device) -> MemoryPlan:
    """What `quire-engine plan` says for this memory. DoesNotFit where it says no."""
    on_gpu = device.type == "cuda"
    memory = torch.cuda.mem_get_info(device)[1] if on_gpu else engine_memory_bytes()
    facts = read_local(Path(config.model), config.load_format)
    adapters = _read_adapters(config, facts.config)
    kind: DeviceKind = "cuda" if on_gpu else "cpu"
    plan = make_plan(facts.config, facts.weights, config, kind, memory, adapters)
    for name, value in plan_rows(plan):  # the table of `quire-engine plan`, each line an event
        logger.info("plan %-24s%s", name, value)
    if plan.refusal is not None:
        raise DoesNotFit(plan.refusal)
    return plan


def _workspace(model: LoadedModel, plan: MemoryPlan) -> torch.Tensor | None:
    """Where compiled kernels write; on a GPU torch's own allocator keeps a step's memory."""
    if model.device.type != "cpu" or kernels.backend("cpu").name != "cpp":
        return None
    tokens, rows = plan.max_num_batched_tokens, plan.max_num_seqs
    return lazy_zeros((workspace_values(model.decoder.config, tokens, rows),))


def choose_device(config: EngineConfig) -> torch.device:
    """The device to run on. NoDevice when the config asks for one that is not there."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise NoDevice(
            "device cuda needs a GPU that CUDA can see, got none on this machine; give the pod "
            "one, or run on the CPU with --device cpu"
        )
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
