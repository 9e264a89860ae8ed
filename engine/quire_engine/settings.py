"""The API process's one frozen config, and the only place where it reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quire_engine.config import LoraModule
from quire_engine.errors import ConfigError

DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")


@dataclass(frozen=True)
class ServerSettings:
    """How the server treats its clients. Raises ConfigError when a value breaks its rule."""

    model: str
    """Folder or .gguf file that tokenizer and chat template are read from. No default."""

    served_model_names: tuple[str, ...]
    """Names that a request's `model` may carry; the first is the one that answers carry."""

    lora_modules: tuple[LoraModule, ...] = ()
    """LoRA adapters: each has a name that a request's `model` may carry, and no other model has."""

    host: str = "0.0.0.0"  # noqa: S104  a pod is reached through its own address
    """Address to listen on."""

    port: int = 8000
    """TCP port; 0 takes a free one."""

    api_keys: tuple[str, ...] = ()
    """Bearer tokens that open /v1, /tokenize and /detokenize. None: everybody may."""

    max_num_queued_reqs: int = 1024
    """Sequences that may wait while as many run as can; above it 429. About eight full batches of
    the default 128: more than a minute's wait on any model, after which a client is better told to
    go.
    """

    max_num_queued_tokens: int | None = None
    """Prompt tokens that may wait for their answers' first tokens, those of running prefills
    included; above it 429. A prompt is always taken where no other waits. None: 256 full steps,
    131,072 tokens on a CPU, what 1,024 prompts of 128 tokens have: minutes of prefill.
    """

    shutdown_timeout: float = 120.0
    """Seconds that accepted requests have to finish after SIGTERM, then they are aborted."""

    health_timeout: float = 60.0
    """Seconds that the core's progress counter may stand still with work pending before /health
    fails, and the kubelet ends the process. It moves with every layer; while the model loads, with
    every tensor, and five times as long is granted."""

    ready_timeout: float = 8.0
    """Seconds of such a standstill before /ready fails: requests go to other pods and the operator
    says why, within 15 s of the cause; nothing is ended. It must be longer than the longest single
    kernel call; tests/bench/bench_standstill.py measures those."""

    max_body_bytes: int = 4 * 1024 * 1024
    """Longest request body. 4 MiB is a million tokens of English."""

    max_header_bytes: int = 64 * 1024
    """Longest request head, request line included."""

    log_requests: bool = False
    """One line in the log for each finished request."""

    def __post_init__(self) -> None:
        if not self.served_model_names or not all(self.served_model_names):
            raise ConfigError(
                f"served_model_name must not be empty, got {self.served_model_names!r}; "
                "leave out --served-model-name for the model folder's name"
            )
        for module in self.lora_modules:
            if module.name in self.served_model_names:
                raise ConfigError(
                    f"lora_modules must have names that the model has not, got {module.name!r}; "
                    "rename it in --lora-modules, or give another --served-model-name"
                )
        if any(not key for key in self.api_keys):
            raise ConfigError(
                "api_key must not be empty, got ''; leave out --api-key to serve everybody"
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(
                f"port must be in 0..65535, got {self.port}; leave out --port for 8000"
            )
        for name, least in (
            ("max_num_queued_reqs", 0),
            ("max_num_queued_tokens", 1),
            ("shutdown_timeout", 0),
            ("health_timeout", 1),
            ("ready_timeout", 1),
            ("max_body_bytes", 1024),
            ("max_header_bytes", 1024),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(
                    f"{name} must be >= {least}, got {value}; raise --{name.replace('_', '-')}"
                )


def termination_log(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the termination message goes; None: nowhere. /dev/termination-log in a pod."""
    named = environment.get("TERMINATION_LOG")
    if named:
        return Path(named)
    log = DEFAULT_TERMINATION_LOG
    return log if log.is_file() and os.access(log, os.W_OK) else None
