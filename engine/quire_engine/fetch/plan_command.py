"""`quire-engine plan MODEL -- FLAGS`: what `serve MODEL FLAGS` needs, from a model's headers alone.

Kilobytes are read, of a volume or of a source, in well under a second. As a Job's container it
writes what it found where the operator reads it: PlanReport, or PlanRefused with exit code 2.
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from quire_engine.adapters import CONFIG as ADAPTER_CONFIG
from quire_engine.adapters import WEIGHTS as ADAPTER_WEIGHTS
from quire_engine.adapters import AdapterFacts
from quire_engine.config import EngineConfig, require_built
from quire_engine.errors import (
    ConfigError,
    DoesNotFit,
    EngineError,
    ExitCode,
    FetchFailed,
    ModelError,
    ModelUnsupported,
)
from quire_engine.fetch.errors import FetchInternal, UnsupportedSource, of_adapter
from quire_engine.fetch.headers import (
    ModelFacts,
    facts_of,
    read_local,
    read_local_adapter,
    read_remote_gguf,
    read_tensors,
)
from quire_engine.fetch.manifest import PlanSummary
from quire_engine.fetch.options import PlanOptions, SourceOptions
from quire_engine.fetch.plan_output import PlanPage, summary_of
from quire_engine.fetch.uri import web_host
from quire_engine.fetch.verification import check_whole
from quire_engine.gpu_types import GPU_TYPES, GpuType
from quire_engine.machine import has_gpu
from quire_engine.memory_plan import MemoryPlan, make_plan, plans_by_memory
from quire_engine.models.config import ModelConfig, parse_config
from quire_engine.redaction import configure_logging
from quire_engine.safetensors_header import ReadRange, read_header
from quire_engine.shards import choose_shards
from quire_engine.termination import (
    TerminationMessage,
    report_failure,
    report_fatal,
    report_success,
)
from quire_engine.weight_facts import DeviceKind, TensorFacts

logger = logging.getLogger(__name__)


class PlanReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The termination message of a plan that was made and fits, or whose memory nobody knows."""

    commit: str  # of the source; of the manifest for a path that was fetched; else empty
    bytes_total: int  # that a fetch would download; 0 for a path
    plan: PlanSummary


class PlanRefused(TerminationMessage, frozen=True, kw_only=True):
    """The same for a plan that was made and cannot be served; exit code 2."""

    commit: str
    bytes_total: int
    plan: PlanSummary


@dataclass(frozen=True)
class FoundModel:
    """A model at its source."""

    facts: ModelFacts
    commit: str
    bytes_total: int
    adapters: tuple[AdapterFacts, ...] = ()


def run(options: PlanOptions) -> int:
    """Print the plan and return the exit code: 0, 2 for settings or memory that cannot do, else
    the source's or the model's own."""
    configure_logging(options.source.redact)
    try:
        found = find(options)
        page = _page(found, options)
    except Exception as error:
        return _report_failure(error, options)
    sys.stdout.write(page.as_json() if options.as_json else page.as_text())
    sys.stdout.flush()
    return _report(found, page.plan, options)


def _page(found: FoundModel, options: PlanOptions) -> PlanPage:
    engine = options.target_engine
    return PlanPage(
        model=options.model,
        commit=found.commit,
        bytes_total=found.bytes_total,
        plan=plan_of(found.facts, engine, options.target_memory_bytes, found.adapters),
        gpu=options.gpu,
        on_gpus=_on_gpus(found, engine),
        price=options.price,
    )


def _on_gpus(found: FoundModel, engine: EngineConfig) -> tuple[tuple[GpuType, MemoryPlan], ...]:
    """The plan on each type of GPU that is known. None for flags that ask for a CPU's own ways."""
    memories = [gpu.memory_bytes for gpu in GPU_TYPES]
    try:
        facts = found.facts
        plans = plans_by_memory(facts.config, facts.weights, engine, memories, found.adapters)
    except ConfigError as error:
        logger.debug("no GPU serves these flags: %s", error)
        return ()
    return tuple(zip(GPU_TYPES, plans, strict=True))


def plan_of(
    facts: ModelFacts,
    engine: EngineConfig,
    memory_bytes: int | None,
    adapters: tuple[AdapterFacts, ...] = (),
) -> MemoryPlan:
    """The plan for the device that `engine` names; auto is what `serve` would find here."""
    device: DeviceKind = "cpu"
    if engine.device == "cuda" or (engine.device == "auto" and has_gpu()):
        device = "cuda"
    return make_plan(facts.config, facts.weights, engine, device, memory_bytes, adapters)


def summarize(model: Path) -> PlanSummary:
    """The figures of a model on disk that do not depend on a device's memory, as a GPU has them
    with default settings."""
    facts = read_local(model)
    plan = make_plan(facts.config, facts.weights, EngineConfig(model=str(model)), "cuda", None)
    return PlanSummary(plan.weight_bytes, plan.kv_bytes_per_token, plan.max_model_len)


def find(options: PlanOptions) -> FoundModel:
    """Config and tensor directory of the model that the options name, and what a fetch of it is;
    its adapters too, each on a path or at a source."""
    model = _find_remote(options) if "://" in options.model else _find_local(options)
    places = [module.path for module in options.engine.lora_modules]
    host = web_host((options.model, *places))
    found = [
        _find_adapter(place, model.facts.config, options.source.of_adapter(place, host))
        for place in places
    ]
    bytes_total = model.bytes_total + sum(num_bytes for _, num_bytes in found)
    return replace(model, bytes_total=bytes_total, adapters=tuple(facts for facts, _ in found))


def _find_local(options: PlanOptions) -> FoundModel:
    path, engine = Path(options.model), options.engine
    manifest = check_whole(path, engine.verify_weights)
    facts = read_local(path, engine.load_format)
    return FoundModel(facts, manifest.commit if manifest else "", 0)


def _find_adapter(
    place: str, model: ModelConfig, options: SourceOptions
) -> tuple[AdapterFacts, int]:
    """The facts of an adapter, and the bytes that a fetch of it brings: none for a path."""
    if "://" not in place:
        return read_local_adapter(Path(place), model), 0
    from quire_engine.fetch.remote import open_reader
    from quire_engine.fetch.source import select_adapter
    from quire_engine.fetch.uri import parse_adapter_uri

    uri, revision = parse_adapter_uri(place)
    try:
        with open_reader(uri, options) as reader:
            listing = reader.list_files(revision)
            files = {file.path: file for file in select_adapter(listing.files, uri)}
            config, weights = files[ADAPTER_CONFIG], files[ADAPTER_WEIGHTS]
            header = read_header(partial(reader.read, weights), weights.path)
            content = reader.read(config, 0, config.size)
    except FetchFailed as error:
        raise of_adapter(error, place) from error
    facts = AdapterFacts.of(content, header.tensors, model, place)
    return facts, sum(file.size for file in files.values())


def _find_remote(options: PlanOptions) -> FoundModel:
    # HTTP clients, half a second: only for models that are not here.
    from quire_engine.fetch.remote import open_reader
    from quire_engine.fetch.source import RemoteFile, index_of, select
    from quire_engine.fetch.uri import parse_uri

    uri, load_format = parse_uri(options.model), options.engine.load_format
    with open_reader(uri, options.source) as reader:
        listing = reader.list_files(options.revision)

        def range_of(file: RemoteFile) -> ReadRange:
            return partial(reader.read, file)

        index = index_of(listing.files, uri)
        content = None if index is None else range_of(index)(0, index.size)
        files = {file.path: file for file in select(listing.files, uri, content)}
        bytes_total = sum(file.size for file in files.values())
        if uri.file is not None:
            gguf = files[uri.file]
            facts = read_remote_gguf(range_of(gguf), uri.file, gguf.size, load_format)
            return FoundModel(facts, listing.commit, bytes_total)
        config_file = files["config.json"]
        config = parse_config(range_of(config_file)(0, config_file.size), options.model)
        shards = choose_shards(files, content, uri.name)

        def stored() -> Iterable[TensorFacts]:
            return read_tensors(
                shards, lambda path: read_header(range_of(files[path]), path).tensors
            )

        facts = facts_of(config, load_format, stored)
        return FoundModel(facts, listing.commit, bytes_total)


def _report(found: FoundModel, plan: MemoryPlan, options: PlanOptions) -> int:
    """Say whether it can be served, to the operator and on stderr."""
    error = _objection(plan, options.engine)
    if error is None:
        report_success(
            PlanReport(commit=found.commit, bytes_total=found.bytes_total, plan=summary_of(plan))
        )
        return ExitCode.OK
    report_failure(
        PlanRefused(
            reason=error.reason,
            message=str(error),
            commit=found.commit,
            bytes_total=found.bytes_total,
            plan=summary_of(plan),
        ),
        options.source.redact,
    )
    return error.exit_code


def _objection(plan: MemoryPlan, engine: EngineConfig) -> ConfigError | None:
    if plan.refusal is not None:
        return DoesNotFit(plan.refusal)
    try:
        require_built(engine)
    except ConfigError as error:
        return error
    return None


def _report_failure(error: Exception, options: PlanOptions) -> int:
    """As a fetch of the same URI would end; a model on a path as `serve` would."""
    known = error
    if "://" in options.model and isinstance(error, ModelUnsupported | ModelError):
        known = UnsupportedSource(str(error))
    elif not isinstance(error, EngineError):
        logger.error("unexpected failure", exc_info=error)
        known = FetchInternal(f"the plan broke: {type(error).__name__}: {error}")
    assert isinstance(known, EngineError)
    report_fatal(known.reason, str(known), options.source.redact)
    return known.exit_code
