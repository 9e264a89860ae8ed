"""The HTTP servers at rising request rates, over a committed table of lengths.

    python tests/bench/bench_servers.py [--servers NAMES] [--rates 0.25,0.5,1,2] [--add]
        [--seconds 30] [--drain 15] [--seed 0] [--table FILE.csv] [--out FILE.json]

For each server and rate: Poisson arrivals for --seconds, then --drain more for what is still open;
what is not answered by then counts as not answered. Arrivals, lengths (lengths.csv, in its order)
and prompts are the same for all servers. A prompt is words of one token each, for not every server
takes token ids; all are new to the server, so that no prefix cache finds anything. Every answer has
the length that was asked for: each server has a way to go on past the end of sequence. One server
runs at a time, as a process of its own (engines/servers.py); the client is one process on the same
cores, whose share of them is told (open_loop.py).

--add keeps what the file has and adds to it: a long measurement in pieces, such as
`--servers 'quire bf16' --rates 1,2 --add`.
"""

import argparse
import asyncio
import json
import math
import os
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from engines import servers_report
from engines.servers import SERVERS, Kind, Server
from lengths import TABLE, Lengths, read_table
from open_loop import Request, Run, arrivals, figures, send_all
from processor import processor

from quire_engine.machine import num_cpus

MODELS = Path("~/.cache/quire/models").expanduser()
MODEL = MODELS / "SmolLM2-135M-Instruct"
GGUF = MODELS / "SmolLM2-135M-Instruct-GGUF" / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results"
WARM_UP = [Lengths(64, 16)] * 4
SETTLE_SECONDS = 30  # for what was given up to leave the server


def one_token_words(model: Path) -> list[str]:
    """Words that are one token each behind a space, in any company."""
    if not GGUF.is_file() or not model.is_dir():
        raise SystemExit(f"the model must be in {MODELS}; `make model` puts it there")
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(word[1:] for word in vocabulary if re.fullmatch("Ġ[a-z]{3,}", word))


def requests(
    kind: Kind, words: list[str], table: list[Lengths], due: list[float], seed: str
) -> list[Request]:
    """The rows of the table in turn, begun anew at its end."""
    chance = random.Random(seed)
    made = []
    for number, when in enumerate(due):
        row = table[number % len(table)]
        body = {
            "prompt": "".join(f" {word}" for word in chance.choices(words, k=row.prompt)),
            "max_tokens": row.answer,
            "temperature": 0,
            "stream": True,
            **kind.full_length(row.answer),
        }
        made.append(Request(when, json.dumps(body).encode(), row.answer))
    return made


def measure(kind: Kind, chosen: argparse.Namespace, report: dict) -> None:
    """One server from its start to its end; adds its figures to the report."""
    words = one_token_words(MODEL)
    entry = report["servers"].setdefault(kind.name, {"rates": {}})
    entry["facts"] = kind.facts()
    before = os.getloadavg()[0]
    with Server(kind, GGUF if kind.is_gguf else MODEL, num_cpus()) as server:
        _check_answered(kind, server, requests(kind, words, WARM_UP, [0.0] * 4, "warm up"))
        for rate in chosen.rates:
            due = arrivals(float(rate), chosen.seconds, chosen.seed)
            sent = requests(kind, words, chosen.table, due, f"{chosen.seed} at {rate}")
            run = _run(server, sent, chosen.seconds + chosen.drain)
            server.check_alive()
            entry["rates"][rate] = told = figures(run, num_cpus())
            print(f"{kind.name} at {rate}/s: {told}", flush=True)
            rest = requests(kind, words, [Lengths(16, 1)], [0.0], f"after {rate}")
            _check_answered(kind, server, rest)
    load = [round(before, 2), round(os.getloadavg()[0], 2)]
    report["load"].append({"servers": kind.name, "load": load})


def _run(server: Server, sent: list[Request], bound_seconds: float) -> Run:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send_all(server.port, sent, bound_seconds))


def _check_answered(kind: Kind, server: Server, sent: list[Request]) -> None:
    """That the server answers to the full length, and has come to rest behind a rate."""
    run = _run(server, sent, SETTLE_SECONDS)
    server.check_alive()
    if not all(trace.is_answered for trace in run.traces):
        raise SystemExit(
            f"{kind.name} must answer {len(sent)} short requests in full within {SETTLE_SECONDS} s,"
            f" got {run.traces}; see its log"
        )
    time.sleep(1)  # what else was given up leaves with the same step


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; refuses what no run can be made of, before anything starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(kind.name for kind in SERVERS)
    parser.add_argument("--servers", type=_servers, default=names, help=f"some of {names}")
    parser.add_argument("--rates", type=_rates, default="0.25,0.5,1,2", help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals at each rate")
    parser.add_argument("--drain", type=float, default=15.0, help="seconds more for answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=_table, default=str(TABLE))
    parser.add_argument("--add", action="store_true", help="add to what the file has")
    parser.add_argument("--out", type=Path, default=RESULTS / "servers.json")
    chosen = parser.parse_args(arguments)
    if not (0 < chosen.seconds < math.inf and 0 <= chosen.drain < math.inf):
        parser.error("--seconds must be > 0 and --drain >= 0")
    for rate in chosen.rates:
        if not arrivals(float(rate), chosen.seconds, chosen.seed):
            parser.error(f"nobody arrives in {chosen.seconds:g} s at {rate}/s; take more --seconds")
    return chosen


def _servers(text: str) -> list[Kind]:
    kinds = {kind.name: kind for kind in SERVERS}
    if unknown := [name for name in text.split(",") if name not in kinds]:
        raise argparse.ArgumentTypeError(f"must be some of {','.join(kinds)}, got {unknown}")
    return [kinds[name] for name in dict.fromkeys(text.split(","))]


def _rates(text: str) -> list[str]:
    for rate in text.split(","):
        if not re.fullmatch(r"\d*\.?\d+", rate) or float(rate) == 0:
            raise argparse.ArgumentTypeError(f"must be numbers > 0 with commas, got {rate!r}")
    return text.split(",")


def _table(text: str) -> list[Lengths]:
    try:
        return read_table(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def started(chosen: argparse.Namespace) -> dict:
    """An empty report, or that of the file where it was made the same way."""
    report: dict = {
        "processor": processor(),
        "num_cpus": num_cpus(),
        "settings": {
            "seconds": chosen.seconds,
            "drain": chosen.drain,
            "seed": chosen.seed,
            "table": servers_report.about_table(chosen.table),
        },
        "servers": {},
        "load": [],
    }
    if not chosen.add or not chosen.out.is_file():
        return report
    before: dict = json.loads(chosen.out.read_text())
    for key in ("processor", "num_cpus", "settings"):
        if before[key] != report[key]:
            raise SystemExit(
                f"--add must find the same {key} in {chosen.out}, got {before[key]} there and "
                f"{report[key]} now; leave --add out to begin anew"
            )
    return before


def write(report: dict, out: Path) -> None:
    """As JSON, Markdown and plot; servers in the order of SERVERS, whatever piece they came in."""
    order = [kind.name for kind in SERVERS]
    servers = sorted(report["servers"].items(), key=lambda item: order.index(item[0]))
    report["servers"] = dict(servers)
    out.write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(servers_report.markdown(report, out.stem + ".png"))
    servers_report.draw(report, out.with_suffix(".png"))


def main() -> None:
    """Measure, print, and write the report, after each server as it stands then."""
    chosen = options()
    report = started(chosen)
    for kind in chosen.servers:
        measure(kind, chosen, report)
        write(report, chosen.out)
    print(chosen.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
