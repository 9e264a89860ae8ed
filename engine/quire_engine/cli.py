"""The command line: `quire-engine serve | fetch | plan`. vLLM's names where both have the flag.

Flags are read here and nowhere else; what they mean is written at the fields of EngineConfig,
ServerSettings, FetchOptions and PlanOptions. Everything heavier than typer is imported by the
command that needs it.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn, TypeAlias

import typer
from typer.main import get_command, get_group

from quire_engine.config import (
    Device,
    Dtype,
    EngineConfig,
    LoadFormat,
    LoraModule,
    Quantization,
    VerifyMode,
    require_built,
)
from quire_engine.errors import ConfigError, EngineError, ExitCode
from quire_engine.fetch import (
    AdapterFetch,
    FetchOptions,
    PlanOptions,
    Price,
    SourceOptions,
    run_fetch,
    run_plan,
)
from quire_engine.garbage import collect_seldom
from quire_engine.gpu_types import find_gpu
from quire_engine.quantity import parse_bytes
from quire_engine.redaction import ADDRESSES_ONLY, Redactor
from quire_engine.settings import ServerSettings
from quire_engine.termination import report_fatal

app = typer.Typer(
    name="quire-engine",
    help="Serve language models with paged attention, on GPUs and CPUs.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("quire"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve language models with paged attention, on GPUs and CPUs."""


@app.command()
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder, or a .gguf file.")],
    dtype: Annotated[
        Dtype, typer.Option(help="Number format of weights and activations.")
    ] = "auto",
    quantization: Annotated[
        Quantization | None,
        typer.Option(
            help="int8, int4: half or a third of bfloat16's bytes, on a CPU. Default: as stored."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto: the GPU where there is one.")] = "auto",
    load_format: Annotated[LoadFormat, typer.Option(help="dummy: random weights.")] = "auto",
    verify_weights: Annotated[
        VerifyMode, typer.Option(help="auto: hash files that have a manifest, before serving.")
    ] = "auto",
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer.")] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences in one step.")] = 128,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens in one step.")] = None,
    max_decode_slowdown: Annotated[
        float, typer.Option(help="Longest step beside one prompt, in steps without; 0: any.")
    ] = 1.75,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Share of a GPU, 0 to 1.")] = 0.9,
    kv_cache_memory_bytes: Annotated[int | None, typer.Option(help="Bytes of KV cache.")] = None,
    num_gpu_blocks_override: Annotated[int | None, typer.Option(help="Blocks of KV cache.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens in one block of KV cache.")] = 16,
    enable_prefix_caching: Annotated[bool, typer.Option(help="Share equal prefixes.")] = True,
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs for one model; 1.")] = 1,
    num_threads: Annotated[int | None, typer.Option(help="CPU threads of the kernels.")] = None,
    seed: Annotated[int, typer.Option(help="For requests that bring no seed.")] = 0,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="What requests call the model; may be repeated. Default: its folder."),
    ] = None,
    lora_modules: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of LoRA adapters, served as models; one or several."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="QUIRE_API_KEY",
            show_envvar=True,
            help="Bearer token that requests must carry; may be repeated.",
        ),
    ] = None,
    max_num_queued_reqs: Annotated[int, typer.Option(help="Waiting sequences, then 429.")] = 1024,
    max_num_queued_tokens: Annotated[
        int | None, typer.Option(help="Waiting prompt tokens, then 429. Default: 256 steps' full.")
    ] = None,
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds to finish on SIGTERM.")] = 120.0,
    health_timeout: Annotated[
        float, typer.Option(help="Seconds of standstill, then /health answers 503.")
    ] = 60.0,
    ready_timeout: Annotated[
        float, typer.Option(help="Seconds of standstill, then /ready answers 503.")
    ] = 8.0,
    max_body_bytes: Annotated[int, typer.Option(help="Longest request body.")] = 4 * 1024 * 1024,
    max_header_bytes: Annotated[int, typer.Option(help="Longest request head.")] = 64 * 1024,
    enable_log_requests: Annotated[bool, typer.Option(help="A log line each.")] = False,
) -> None:
    """Serve MODEL with an OpenAI-compatible API."""
    adapters = tuple(LoraModule.parse(text) for text in lora_modules or ())
    config = EngineConfig(
        model=model,
        dtype=dtype,
        quantization=quantization,
        device=device,
        load_format=load_format,
        verify_weights=verify_weights,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_decode_slowdown=max_decode_slowdown,
        gpu_memory_utilization=gpu_memory_utilization,
        kv_cache_memory_bytes=kv_cache_memory_bytes,
        num_gpu_blocks_override=num_gpu_blocks_override,
        block_size=block_size,
        enable_prefix_caching=enable_prefix_caching,
        tensor_parallel_size=tensor_parallel_size,
        num_threads=num_threads,
        seed=seed,
        lora_modules=adapters,
    )
    settings = ServerSettings(
        model=model,
        served_model_names=tuple(served_model_name or (_default_name(model),)),
        lora_modules=adapters,
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        max_num_queued_reqs=max_num_queued_reqs,
        max_num_queued_tokens=max_num_queued_tokens,
        shutdown_timeout=shutdown_timeout,
        health_timeout=health_timeout,
        ready_timeout=ready_timeout,
        max_body_bytes=max_body_bytes,
        max_header_bytes=max_header_bytes,
        log_requests=enable_log_requests,
    )
    take: _Taker = context.obj or _serve  # `plan` asks for the configs alone
    take(settings, config)


_MANY_VALUES = "--lora-modules"
_MODULE = re.compile(r"\{|[^-/=][^/=]*=")

_Taker: TypeAlias = Callable[[ServerSettings, EngineConfig], None]


def _serve(settings: ServerSettings, config: EngineConfig) -> None:
    from quire_engine.serve import serve as run

    require_built(config)
    end = run(settings, config)
    if end is not None:
        _fail(end.exit_code, end.reason, end.message)


@app.command()
def fetch(
    uri: Annotated[str, typer.Argument(help="hf://, s3://, gs://, az:// or https:// model.")],
    directory: Annotated[Path, typer.Argument(help="Root of the volume.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="FOLDER=URI[#REVISION] of a LoRA adapter beside it; may be repeated."),
    ] = None,
    progress_port: Annotated[int | None, typer.Option(help="Port of GET /progress.")] = None,
    verify: Annotated[bool, typer.Option(help="Hash what is there.")] = False,
    repair: Annotated[bool, typer.Option(help="Fetch bad files again.")] = False,
    keep: Annotated[bool, typer.Option(help="Leave a whole model there as it is.")] = False,
) -> None:
    """Bring a model to DIRECTORY: resumed, verified, installed whole."""
    options = FetchOptions(
        uri=uri,
        directory=directory,
        revision=revision,
        adapters=tuple(AdapterFetch.parse(text) for text in adapter or ()),
        progress_port=progress_port,
        verify=verify,
        repair=repair,
        keep=keep,
        source=SourceOptions.from_environment(os.environ),
    )
    raise typer.Exit(run_fetch(options))


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file or a URI that fetch takes.")],
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SERVE_FLAGS]", help="What `serve` would be told."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Of a GPU, or the container's limit: bytes, or as 24Gi. Else no refusal."
        ),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Plan for this GPU: T4, L40S, H100 80GB, H200...")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of what one engine runs on; with --tokens-per-second.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Measured, over all requests: for the cost of a token.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what memory MODEL needs when `serve` gets these flags, before it is even downloaded."""
    options = PlanOptions(
        model=model,
        engine=_served(model, flags or ()),
        revision=revision,
        memory_bytes=None if memory is None else parse_bytes(memory),
        as_json=json,
        gpu=None if gpu is None else find_gpu(gpu),
        price=Price.of(price_per_hour, tokens_per_second),
        source=SourceOptions.from_environment(os.environ),
    )
    raise typer.Exit(run_plan(options))


def _served(model: str, flags: Sequence[str]) -> EngineConfig:
    """What `serve MODEL FLAGS` would start the engine with, by that command itself."""
    configs: list[EngineConfig] = []
    command = get_group(app).commands["serve"]

    def take(settings: ServerSettings, config: EngineConfig) -> None:
        configs.append(config)

    with command.make_context("serve", [model, *flags], obj=take) as context:
        command.invoke(context)
    return configs[0]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Whatever goes wrong, the last line on stderr says what."""
    collect_seldom()
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    given = _one_value_a_flag(given)
    try:
        code = get_command(app).main(given, prog_name="quire-engine", standalone_mode=False)
    except typer.TyperException as error:
        rule = error.format_message().rstrip(".") + _shown_value(error, given)
        command = _command_of(error)
        _fail(
            ExitCode.USAGE, "BadConfig", f"{rule}; see {f'quire-engine {command}'.strip()} --help"
        )
    except typer.Abort:
        sys.exit(130)  # Ctrl-C, as shells count it
    except EngineError as error:
        _fail(error.exit_code, error.reason, str(error))
    except Exception as error:
        redact = _redactor()
        sys.stderr.write(redact(traceback.format_exc()))
        _fail(ExitCode.INTERNAL, "Internal", redact(f"{type(error).__name__}: {error}"))
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _redactor() -> Redactor:
    """With the environment's secrets; a bad environment must not hide what failed."""
    try:
        return SourceOptions.from_environment(os.environ).redact
    except ConfigError:
        return ADDRESSES_ONLY


def _one_value_a_flag(given: Sequence[str]) -> list[str]:
    """`--lora-modules a=x b=y`, as vLLM takes it, with the flag before each value."""
    spread: list[str] = []
    values = -1  # of the flag so far; -1: not behind it
    for argument in given:
        values = 0 if argument == _MANY_VALUES else (values + 1 if values >= 0 else -1)
        if values > 1 and not _MODULE.match(argument):
            values = -1
        spread += [_MANY_VALUES, argument] if values > 1 else [argument]
    return spread


def _command_of(error: typer.TyperException) -> str:
    """The command whose flags are wrong: `serve` also for those behind `plan`'s `--`."""
    context = getattr(error, "ctx", None)
    name = None if context is None else context.info_name
    return "" if name in (None, "quire-engine") else str(name)


def _shown_value(error: typer.TyperException, given: Sequence[str]) -> str:
    """`, got <value>` for a flag whose value is bad: typer names the flag alone. Never a key."""
    flags = set(getattr(getattr(error, "param", None), "opts", ())) - {"--api-key"}
    for argument, following in zip(given, [*given[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in flags:
            return f", got {value if equals else following!r}"
    return ""


def _fail(exit_code: int, reason: str, message: str) -> NoReturn:
    report_fatal(reason, message)
    sys.exit(exit_code)


def _default_name(model: str) -> str:
    """The folder's name; a .gguf file's without its ending."""
    path = Path(model).absolute()
    return path.stem if path.suffix == ".gguf" else path.name
