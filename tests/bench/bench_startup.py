"""From exec of `quire-engine serve` to a 200 from /ready, by phase, and what it holds by then.

    python tests/bench/bench_startup.py [--model DIR_OR_GGUF] [--runs 5] [--cold-runs 3]
        [--out FILE.json]

Warm: the model's files lie in the page cache. Cold: they are dropped from it before each start
(posix_fadvise, these files alone; Python and the libraries stay warm), and what stayed all the same
is reported. Phases are the engine's own, `quire_startup_seconds` of /metrics; exec to ready is
taken from outside. Memory is held against the plan that the start printed: everything but the KV
cache, of which a start touches a block. What it saves to collect garbage seldom while importing
(garbage.py) is measured in the same run.
"""

import argparse
import ctypes
import json
import mmap
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from processor import processor

from quire_engine.config import EngineConfig
from quire_engine.fetch.headers import read_local
from quire_engine.fetch.plan_command import plan_of
from quire_engine.machine import num_cpus

MODEL = Path("~/.cache/quire/models/SmolLM2-135M-Instruct").expanduser()
RESULTS = Path(__file__).parent / "results"
IN_TURN = ("command", "imports", "plan", "weights", "kv_cache", "warmup", "verify")
BESIDE = ("api", "tokenizer")
POLL_SECONDS = 0.01
IMPORTS = {
    "by default": "import quire_engine.start",
    "seldom": "from quire_engine.garbage import collect_seldom; collect_seldom(); "
    "import quire_engine.start",
}
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Start:
    """One start."""

    ready_seconds: float  # from outside: exec to a 200 from /ready
    phases: dict[str, float]
    core_bytes: int  # anonymous memory of the core process
    api_bytes: int


def model_files(model: Path) -> list[Path]:
    """What a start reads of the model."""
    return [model] if model.is_file() else [path for path in model.iterdir() if path.is_file()]


def drop(files: list[Path]) -> float:
    """Take the files out of the page cache; the share of their pages that stayed."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    counts = [resident_pages(path) for path in files if path.stat().st_size]
    return sum(resident for resident, _ in counts) / sum(pages for _, pages in counts)


def resident_pages(path: Path) -> tuple[int, int]:
    """Pages of the file in the page cache, and all of them (mincore(2))."""
    size = path.stat().st_size
    num_pages = -(-size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * num_pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        view = (ctypes.c_char * size).from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(view), ctypes.c_size_t(size), vector)
        del view
    if failed:
        raise SystemExit(f"mincore failed for {path}")
    return sum(page & 1 for page in vector), num_pages


def start_once(model: Path) -> Start:
    """Start a server, wait for it, look at it, end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-m", "quire_engine", "serve", str(model), "--device", "cpu",
             "--host", "127.0.0.1", "--port", str(port)],
            stderr=log,
        )  # fmt: skip
        try:
            ready_seconds = until_ready(server, port, begin)
            return Start(
                ready_seconds,
                phases_of(fetch(port, "/metrics")),
                core_bytes=anonymous_bytes(core_of(server.pid)),
                api_bytes=anonymous_bytes(server.pid),
            )
        except RuntimeError as error:
            log.seek(0)
            raise SystemExit(f"{error}\n{log.read().decode()}") from error
        finally:
            server.terminate()
            server.wait(timeout=30)


def until_ready(server: "subprocess.Popen[bytes]", port: int, begin: float) -> float:
    while server.poll() is None and time.perf_counter() - begin < PATIENCE_SECONDS:
        try:
            fetch(port, "/ready")
            return time.perf_counter() - begin
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    raise RuntimeError(f"quire-engine did not become ready (exit code {server.poll()})")


def fetch(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


def phases_of(metrics: str) -> dict[str, float]:
    found = re.findall(r'^quire_startup_seconds\{phase="(\w+)"\} (\S+)$', metrics, re.MULTILINE)
    return {phase: float(seconds) for phase, seconds in found}


def core_of(process_id: int) -> int:
    """The core process: the API process's child."""
    return int(Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()[0])


def anonymous_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def summary(starts: list[Start]) -> dict[str, object]:
    """Median, least and most of each figure."""
    figures = {"exec to ready": [start.ready_seconds for start in starts]}
    for phase in (*IN_TURN, *BESIDE):
        figures[phase] = [start.phases[phase] for start in starts]
    return {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in figures.items()
    }


def import_seconds(runs: int) -> dict[str, float]:
    """What the engine's imports take as the garbage collector is told to work, in turn; medians."""
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(runs):
        for name, code in IMPORTS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def planned_bytes(model: Path) -> int:
    """All but the KV cache, as the plan has it."""
    engine = EngineConfig(model=str(model), device="cpu")
    return plan_of(read_local(model), engine, None).fixed_bytes


def table(report: dict) -> str:
    """The report as Markdown."""
    names = ["exec to ready", *IN_TURN, *BESIDE]
    kinds = [kind for kind in ("warm", "cold") if kind in report]
    lines = [
        f"{report['processor']}, {report['num_cpus']} cores, {report['model']}; seconds, median "
        f"(lowest-highest) of {report['runs']} starts, cold {report['cold_runs']}",
        "",
        f"| phase | {' | '.join(kinds)} |",
        f"| --- |{' --- |' * len(kinds)}",
    ]
    for name in names:
        cells = [
            "{median:.2f} ({low:.2f}-{high:.2f})".format(**report[kind][name]) for kind in kinds
        ]
        lines.append(f"| {name}{' (beside)' if name in BESIDE else ''} | {' | '.join(cells)} |")
    default, seldom = (report["import_seconds"][name] for name in IMPORTS)
    held, planned = report["anonymous_bytes"] / 2**20, report["planned_bytes"] / 2**20
    return "\n".join(
        [
            *lines,
            "",
            f"Cold: {report['resident_share']:.1%} of the model's pages stayed in the page cache.",
            f"Anonymous memory of both processes when ready: {held:.0f} MiB, of {planned:.0f} MiB "
            "that the plan counts without the KV cache.",
            f"The engine's imports, garbage collected by default and seldom, in turn: "
            f"{default:.2f} s and {seldom:.2f} s, {seldom / default:.2f} of it.",
            "",
            f"load average before and after: {report['load']}",
        ]
    )


def main() -> None:
    """Measure, print, and write the report as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold-runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    start_once(options.model)  # fills the page cache
    warm = [start_once(options.model) for _ in range(options.runs)]
    report: dict = {
        "processor": processor(),
        "num_cpus": num_cpus(),
        "model": options.model.name,
        "runs": options.runs,
        "cold_runs": options.cold_runs,
        "warm": summary(warm),
        "resident_share": 0.0,
        "anonymous_bytes": max(start.core_bytes + start.api_bytes for start in warm),
        "planned_bytes": planned_bytes(options.model),
        "import_seconds": import_seconds(options.runs),
    }
    cold = []
    for _ in range(options.cold_runs):
        stayed = drop(model_files(options.model))
        report["resident_share"] = max(report["resident_share"], stayed)
        cold.append(start_once(options.model))
    if cold:
        report["cold"] = summary(cold)
    load.append(os.getloadavg()[0])
    report["load"] = [round(value, 2) for value in load]
    print(table(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(report) + "\n")


if __name__ == "__main__":
    main()
