"""Getting a model onto a volume, whole, and keeping it whole.

Read `job.py` first: list → clear the old → download → verify → install. What cli.py calls:

    run_fetch(FetchOptions(uri=..., directory=...)) -> int      the process's exit code
    run_plan(PlanOptions(model=...)) -> int                     prints the memory plan

What the engine calls when it loads a model (no torch and no HTTP behind these):

    manifest.check_model(path)                    sizes and safetensors headers, in milliseconds
    verification.start_verification(path, mode)   sha256 of every file beside the loading; .wait()

Both raise ModelCorrupt (exit 65), after which the operator runs `fetch --repair`.
"""

from quire_engine.fetch.options import (
    AdapterFetch,
    FetchOptions,
    PlanOptions,
    Price,
    SourceOptions,
)

__all__ = [
    "AdapterFetch",
    "FetchOptions",
    "PlanOptions",
    "Price",
    "SourceOptions",
    "run_fetch",
    "run_plan",
]


def run_fetch(options: FetchOptions) -> int:
    """Bring the model to `options.directory` and return the exit code: 0, 2 or 10.

    Failures are told in the termination message and as the last line on stderr, never raised.
    """
    from quire_engine.fetch.job import run  # HTTP clients: an engine that only verifies needs none

    return run(options)


def run_plan(options: PlanOptions) -> int:
    """Print the memory plan of a folder, a .gguf file or an hf:// model; returns the exit code."""
    from quire_engine.fetch.plan_command import run

    return run(options)
