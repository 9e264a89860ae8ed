"""`quire-engine plan MODEL`: what a model needs, from its headers alone, in under a second."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import msgspec

from quire_engine.config import token_budget
from quire_engine.errors import ConfigError, EngineError, ExitCode
from quire_engine.fetch.headers import (
    ModelFacts,
    read_local,
    read_remote_gguf,
    read_tensors,
)
from quire_engine.fetch.manifest import PlanSummary
from quire_engine.fetch.options import PlanOptions
from quire_engine.memory_plan import (
    DTYPE_BYTES,
    MemoryPlan,
    PlanLimits,
    WeightFacts,
    gibibytes,
    make_plan,
    refusal,
)
from quire_engine.models.config import parse_config
from quire_engine.safetensors_header import ReadRange, read_header
from quire_engine.shards import choose_shards
from quire_engine.termination import report_fatal


def run(options: PlanOptions) -> int:
    """Print the plan. Exit code 2 for a model that does not fit or cannot be planned."""
    try:
        facts = read_facts(options)
        plan = make_plan(facts.config, facts.weights, limits_of(options))
    except EngineError as error:
        report_fatal(error.reason, str(error))
        return error.exit_code
    sys.stdout.write(_as_json(plan) if options.as_json else _as_text(plan, options.model))
    reason = refusal(plan)
    if reason is None:
        return ExitCode.OK
    report_fatal("DoesNotFit", reason)
    return ExitCode.USAGE


def summarize(model: Path) -> PlanSummary:
    """The figures of a model on disk that do not depend on a device: weights as they are stored
    (quantized ones unpacked to bfloat16), cache in the weights' own format."""
    facts = read_local(model)
    plan = make_plan(facts.config, facts.weights, PlanLimits())
    return PlanSummary(plan.weight_bytes, plan.kv_bytes_per_token, plan.max_model_len)


def read_facts(options: PlanOptions) -> ModelFacts:
    """Config and tensor directory of the model that the options name."""
    if "://" in options.model:
        return _read_remote(options)
    return read_local(Path(options.model))


def limits_of(options: PlanOptions) -> PlanLimits:
    """The engine's settings; ConfigError for values that it has not."""
    if options.dtype not in ("auto", *DTYPE_BYTES):
        raise ConfigError(
            f"dtype must be auto or one of {', '.join(DTYPE_BYTES)}, got {options.dtype!r}"
        )
    memory, max_num_seqs = options.gpu_memory_bytes, options.max_num_seqs
    return PlanLimits(
        dtype=options.dtype,
        compute_dtype="float32" if options.device == "cpu" else "auto",
        max_model_len=options.max_model_len,
        max_num_batched_tokens=token_budget(
            options.device, options.max_num_batched_tokens, max_num_seqs
        ),
        max_num_seqs=max_num_seqs,
        block_size=options.block_size,
        memory_bytes=None if memory is None else int(memory * options.gpu_memory_utilization),
    )


def _read_remote(options: PlanOptions) -> ModelFacts:
    # HTTP clients, half a second: only for models that are not here.
    from quire_engine.fetch.remote import RemoteReader
    from quire_engine.fetch.source import RemoteFile, index_of, select
    from quire_engine.fetch.sources import open_source
    from quire_engine.fetch.uri import parse_uri

    uri = parse_uri(options.model)
    with RemoteReader(open_source(uri, options.source), options.source) as reader:
        listing = reader.list_files(options.revision)

        def range_of(file: RemoteFile) -> ReadRange:
            return partial(reader.read, file)

        index = index_of(listing.files, uri)
        content = None if index is None else range_of(index)(0, index.size)
        files = {file.path: file for file in select(listing.files, uri, content)}
        if uri.file is not None:
            return read_remote_gguf(range_of(files[uri.file]), uri.file, files[uri.file].size)
        config_file = files["config.json"]
        config = parse_config(range_of(config_file)(0, config_file.size), options.model)
        shards = choose_shards(files, content, uri.name)
        tensors = read_tensors(
            shards, lambda path: read_header(range_of(files[path]), path).tensors
        )
        return ModelFacts(config, WeightFacts.of(tensors, config))


def _as_json(plan: MemoryPlan) -> str:
    fields = {**dataclasses.asdict(plan), "fits": plan.fits, "refusal": refusal(plan)}
    return msgspec.json.format(msgspec.json.encode(fields)).decode() + "\n"


def _as_text(plan: MemoryPlan, model: str) -> str:
    rows = [
        ("model", model),
        ("parameters", f"{plan.parameters:,}"),
        (
            "weights",
            f"{gibibytes(plan.weight_bytes)} ({plan.weight_bytes:,} B, {plan.weight_dtype})",
        ),
        ("KV cache per token", f"{plan.kv_bytes_per_token:,} B"),
        ("activations, at most", gibibytes(plan.activation_bytes)),
        ("context", f"{plan.max_model_len:,} tokens"),
        ("needed for one sequence", gibibytes(plan.required_bytes)),
    ]
    if plan.memory_bytes is not None:
        rows += [
            ("memory to use", gibibytes(plan.memory_bytes)),
            ("KV cache blocks", f"{plan.num_blocks:,} of {plan.block_size} tokens"),
            ("full contexts at once", f"{plan.max_concurrency:,}"),
        ]
    return "".join(f"{name:<24}{value}\n" for name, value in rows)
