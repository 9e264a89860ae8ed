"""What `quire-engine plan` costs: processor seconds of a fresh process, imports included.

    .venv/bin/python tests/bench/bench_plan.py [--runs 5] [--tree OTHER_CHECKOUT]

SmolLM2-135M as a path and at a hub mirror on loopback, as safetensors and as GGUF. `--tree` runs
the engine of another checkout in turn with this one's, so that both meet the same machine.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from quire_cluster.hub import running_mirror
from quire_cluster.model import GGUF_NAME, NAME, ORGANIZATION, prepare_model

ROOT = Path(__file__).parents[2]


def processor_seconds(model: str, tree: Path, endpoint: str) -> float:
    """Of one plan of `model` by the engine in `tree`."""
    kept = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(str(tree / part) for part in ("engine", "kernels"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "quire_engine", "plan", model, "--", "--device", "cpu"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**kept, "PYTHONPATH": path, "HF_ENDPOINT": endpoint},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the median of each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tree", type=Path)
    options = parser.parse_args()
    paths = prepare_model()
    models = {
        "safetensors, path": str(paths.safetensors),
        "GGUF, path": str(paths.gguf),
        "safetensors, hub": f"hf://{ORGANIZATION}/{NAME}",
        "GGUF, hub": f"hf://{ORGANIZATION}/{NAME}-GGUF/{GGUF_NAME}",
    }
    trees = {"this tree": ROOT} | ({"the other": options.tree} if options.tree else {})
    with running_mirror(paths.hub) as mirror:
        for name, model in models.items():
            seconds: dict[str, list[float]] = {tree: [] for tree in trees}
            for _ in range(options.runs + 1):  # the first one compiles
                for tree, folder in trees.items():
                    seconds[tree].append(processor_seconds(model, folder, mirror.url))
            for tree, taken in seconds.items():
                print(f"{name:<20}{tree:<12}{statistics.median(taken[1:]):.2f} s")


if __name__ == "__main__":
    main()
