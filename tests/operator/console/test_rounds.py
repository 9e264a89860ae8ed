"""Rounds of `top` over an API server in memory, and how they are shown."""

import io

import pytest
from rich.console import Console

from quire_operator.console import rounds
from quire_operator.console.command import put
from quire_operator.console.meter import Figures
from quire_operator.console.rounds import Line, Round, Sampler
from quire_operator.console.table import Order, table
from quire_operator.errors import ConsoleError
from quire_operator.kinds import POD, SERVICE_KIND
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_console import ConsoleCluster


def sampler(cluster: ConsoleCluster, namespace: str | None = None) -> Sampler:
    return Sampler(cluster, namespace, "https://api.example")


async def test_two_rounds_make_rates(ready: ConsoleCluster) -> None:
    asked = sampler(ready, "default")
    ready.answer(running=3, waiting=1, tokens=100, **{"ttft_0.5": 0})
    [line] = (await asked.round(0.0)).lines
    assert (line.key, line.ready, line.wanted, line.status) == (("default", "chat"), 1, 1, "True")
    assert (line.figures.running, line.figures.tokens_per_second) == (3, None)
    ready.answer(running=3, waiting=1, tokens=300, **{"ttft_0.5": 20})
    [line] = (await asked.round(2.0)).lines
    assert line.figures.tokens_per_second == pytest.approx(100)
    assert line.figures.ttft_p95_seconds == pytest.approx(0.475)


async def test_one_namespace_or_all(rig: Rig, ready: ConsoleCluster) -> None:
    ready.put(service_manifest("chat", "other"))
    await rig.settle()
    both = await sampler(ready).round(0.0)
    assert [line.key for line in both.lines] == [Key("default", "chat"), Key("other", "chat")]
    assert [line.ready for line in both.lines] == [1, 0], "a pod counts in its own namespace"
    one = await sampler(ready, "other").round(0.0)
    assert [line.key.namespace for line in one.lines] == ["other"]


async def test_a_hung_pod_delays_a_round_by_its_deadline_only(
    ready: ConsoleCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "PAGE_SECONDS", 0.02)
    [name] = ready.engine_pods()
    ready.hung = {name}
    found = await sampler(ready).round(0.0)
    assert found.lines[0].figures.silent == ((name, "did not answer within 0.02 s"),)
    assert f"pod {name} did not answer within 0.02 s" in shown(found)


async def test_rights_that_are_missing_are_said_once(ready: ConsoleCluster) -> None:
    ready.forbidden = {"pods/proxy"}
    found = await sampler(ready).round(0.0)
    assert len(found.unseen) == 1
    assert "pods/proxy" in found.unseen[0]
    assert found.lines[0].figures.silent == ()
    ready.forbidden = {"pods"}
    found = await sampler(ready).round(0.0)
    assert found.unseen[0].startswith("pods, and so no load: forbidden")
    assert found.lines[0].ready == 1, "the operator's own count"


async def test_pods_that_are_gone_are_not_counted(ready: ConsoleCluster) -> None:
    """Though the operator has not said so yet."""
    for name in ready.engine_pods():
        ready.remove(POD, Key("default", name))
    [line] = (await sampler(ready).round(0.0)).lines
    assert (line.ready, line.wanted) == (0, 1)


async def test_services_that_cannot_be_listed(ready: ConsoleCluster) -> None:
    ready.forbidden = {"inferenceservices"}
    with pytest.raises(ConsoleError, match="in all namespaces"):
        await sampler(ready).round(0.0)
    ready.forbidden, ready.unknown = set(), {SERVICE_KIND}
    with pytest.raises(ConsoleError, match="quire is not installed"):
        await sampler(ready).round(0.0)


def line(name: str, **figures: float) -> Line:
    known: dict[str, float | None] = {
        "running": 0,
        "waiting": 0,
        "kv_cache_utilization": 0,
        "ttft_p95_seconds": None,
        "tokens_per_second": None,
    }
    numbers = Figures(**(known | figures), silent=())  # type: ignore[arg-type]
    return Line(
        key=Key("default", name), status="True", reason="Ready", ready=1, wanted=1, figures=numbers
    )


BUSY = line("busy", running=8, waiting=5, kv_cache_utilization=0.9, tokens_per_second=1234.5)
FULL = line("full", running=8, waiting=5, kv_cache_utilization=0.99, tokens_per_second=10)
SLOW = line("slow", running=1, waiting=0, ttft_p95_seconds=12.0, tokens_per_second=1)
IDLE = line("idle")
FOUND = Round(lines=(IDLE, SLOW, FULL, BUSY), unseen=())


def shown(found: Round, order: Order = "load", width: int = 100, *, all_: bool = False) -> str:
    into = io.StringIO()
    put(Console(file=into, width=width, highlight=False), table(found, order, namespaces=all_))
    return into.getvalue()


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("load", ["busy", "full", "slow", "idle"]),
        ("name", ["busy", "full", "idle", "slow"]),
        ("kv", ["full", "busy", "idle", "slow"]),
        ("ttft", ["slow", "busy", "full", "idle"]),
        ("tokens", ["busy", "full", "slow", "idle"]),
    ],
)
def test_what_stands_first(order: Order, names: list[str]) -> None:
    lines = shown(FOUND, order).splitlines()[1:]
    assert [text.split()[0] for text in lines] == names


def test_a_table() -> None:
    """Spelt out once: what numbers look like, and what stands for one that is not known."""
    assert shown(Round(lines=(BUSY, SLOW), unseen=("events: forbidden",)), width=80) == (
        "NAME  READY  RUN  WAIT   KV  TTFT p95  TOKENS/S\n"
        "busy    1/1    8     5  90%         -   1,234.5\n"
        "slow    1/1    1     0   0%       12s       1.0\n"
        "not shown: events: forbidden\n"
    )


def test_namespaces_are_named_where_there_are_several() -> None:
    assert shown(FOUND, all_=True).splitlines()[1].split()[:2] == ["default", "busy"]


def test_no_service_at_all_is_a_sentence() -> None:
    nothing = Round(lines=(), unseen=())
    assert shown(nothing) == "There is no InferenceService in this namespace (-A shows all).\n"
    assert shown(nothing, all_=True) == "There is no InferenceService in any namespace.\n"
