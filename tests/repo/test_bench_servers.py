"""The pure parts of tests/bench/bench_servers.py, and its client against a server that behaves."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import bench_servers
import lengths
import pytest
from engines import servers_report
from engines.servers import SERVERS
from lengths import Lengths
from open_loop import Request, Run, Trace, arrivals, figures, note, percentile, send_all
from tokenizers import Tokenizer

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def test_the_committed_table_is_what_its_script_draws() -> None:
    assert lengths.read_table(lengths.TABLE) == lengths.drawn_table(seed=0, rows=200)


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table = [Lengths(1, 1023), Lengths(1000, 7)]
    lengths.write_table(table, tmp_path / "table.csv")
    assert lengths.read_table(tmp_path / "table.csv") == table


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must have the columns"),
        ("prompt_len,answer_len\n", "and rows"),
        ("a,b\n1,2\n", r"got \['a', 'b'\]"),
        ("prompt_len,answer_len\n1,2\n3\n", "line 3: a row must be two numbers"),
        ("prompt_len,answer_len\n0,2\n", "line 2: a row must be two numbers >= 1"),
        ("prompt_len,answer_len\n1,-2\n", "line 2: a row must be two numbers"),
        ("prompt_len,answer_len\n2000,49\n", "line 2: prompt and answer must fit 2048"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        lengths.read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--servers", "quire bf16,nginx"], "got ['nginx']"),
        (["--rates", "1,fast"], "got 'fast'"),
        (["--rates", "0"], "must be numbers > 0"),
        (["--rates", "1,"], "got ''"),
        (["--seconds", "0"], "--seconds must be > 0"),
        (["--seconds", "nan"], "--seconds must be > 0"),
        (["--drain", "-1"], "--drain >= 0"),
        (["--rates", "0.001"], "nobody arrives in 30 s at 0.001/s"),
        (["--table", "nowhere.csv"], "the table must be a file"),
    ],
)
def test_bad_flags_are_refused_before_anything_starts(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_servers.options(arguments)
    assert told in capsys.readouterr().err


def test_adding_to_another_measurement_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "servers.json")
    first = bench_servers.options(["--out", out])
    Path(out).write_text(json.dumps(bench_servers.started(first)))
    assert bench_servers.started(bench_servers.options(["--out", out, "--add"]))["servers"] == {}
    with pytest.raises(SystemExit, match="same settings"):
        bench_servers.started(bench_servers.options(["--out", out, "--add", "--drain", "5"]))


def test_twice_the_rate_is_the_same_arrivals_in_half_the_time() -> None:
    slow = arrivals(0.5, 100, seed=3)
    assert arrivals(1.0, 50, seed=3) == pytest.approx([due / 2 for due in slow])
    assert slow == sorted(slow)
    assert slow[-1] < 100
    assert arrivals(0.5, 100, seed=4) != slow


def test_arrivals_come_at_their_rate() -> None:
    times = arrivals(2.0, 5000, seed=0)
    gaps = [after - before for before, after in pairwise(times)]
    assert len(times) / 5000 == pytest.approx(2.0, rel=0.05)
    # exponential: as far spread as they are long
    mean = sum(gaps) / len(gaps)
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(
        mean, rel=0.05
    )


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 99) == 7
    assert percentile([], 50) is None


def test_whom_no_token_reached_counts_among_the_slowest() -> None:
    assert percentile([1.0, math.inf, 2.0], 50) == 2
    assert percentile([1.0, math.inf, math.inf], 50) is None


def _run() -> Run:
    return Run(
        traces=[
            Trace(due=1.0, answer_len=3, texts=[1.5, 1.6, 1.8], is_answered=True),
            Trace(due=2.0, answer_len=9, texts=[5.0, 5.3]),
            Trace(due=3.0, answer_len=8, is_refused=True),
            Trace(due=4.0, answer_len=8),
        ],
        seconds=10.0,
        client_cpu_seconds=0.5,
    )


def test_the_figures_of_a_rate() -> None:
    told = figures(_run(), num_cpus=2)
    assert (told["sent"], told["answered"], told["refused"], told["broken"]) == (4, 1, 1, 0)
    assert told["asked_tokens"] == 28
    assert told["output_tokens_per_second"] == 0.5  # three, and two of the unfinished one
    assert (told["ttft_p50_seconds"], told["ttft_p99_seconds"]) == (3.0, None)
    assert (told["between_tokens_p50_ms"], told["between_tokens_p99_ms"]) == (200, 300)
    assert told["good_share"] == 0.25
    assert told["client_cpu_share"] == 0.025


def test_an_answer_in_full_counts_with_the_tokens_that_had_no_text() -> None:
    trace = Trace(due=0.0, answer_len=5, texts=[1.0, 2.0], is_answered=True)
    assert trace.num_tokens == 5


def test_an_answer_that_stopped_early_is_not_answered() -> None:
    trace = Trace(due=0.0, answer_len=5)
    note({"choices": [{"text": "a"}]}, 1.0, trace)
    note({"choices": [{"text": "", "finish_reason": "stop"}]}, 2.0, trace)
    note({"error": "out of memory"}, 3.0, trace)
    assert (trace.texts, trace.is_answered) == ([1.0], False)


@asynccontextmanager
async def _served(answer: Answer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        await answer(reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


OK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = 'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n'
LAST = 'data: {"choices": [{"text": "b", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'


async def _in_full(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    both = FIRST + ": ping\r\n\r\n" + LAST
    writer.write(OK + _chunk(both[:20]) + _chunk(both[20:]) + _chunk(""))


async def _refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")


async def _break_off(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + _chunk(FIRST))


async def _say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(-1)


@pytest.mark.parametrize(
    ("answer", "texts", "answered", "refused", "broken"),
    [
        (_in_full, 2, True, False, False),
        (_refuse, 0, False, True, False),
        (_break_off, 1, False, False, True),
    ],
)
async def test_what_the_client_tells_of_an_answer(
    answer: Answer, texts: int, answered: bool, refused: bool, broken: bool
) -> None:
    async with _served(answer) as port:
        run = await send_all(port, [Request(0.0, b"{}", 2)] * 2, bound_seconds=60)
    for trace in run.traces:
        assert len(trace.texts) == texts
        assert trace.is_answered == answered
        assert trace.is_refused == refused
        assert trace.is_broken == broken


async def test_who_is_not_answered_by_the_bound_is_given_up() -> None:
    async with _served(_say_nothing) as port:
        run = await send_all(port, [Request(0.0, b"{}", 2)], bound_seconds=0.1)
    [trace] = run.traces
    assert (trace.ttft, trace.is_answered, trace.is_broken) == (math.inf, False, False)


async def test_a_port_that_nobody_listens_on_breaks_the_request() -> None:
    async with _served(_say_nothing) as port:
        pass
    run = await send_all(port, [Request(0.0, b"{}", 2)], bound_seconds=60)
    assert run.traces[0].is_broken


def test_the_report_shows_rates_in_order_and_what_is_missing(tmp_path: Path) -> None:
    report = {
        "processor": "a processor",
        "num_cpus": 2,
        "settings": {"seconds": 10.0, "drain": 5.0, "seed": 0, "table": "2 rows"},
        "servers": {
            "one": {
                "facts": {"version": "1.0", "command": "one serve", "remark": "alone"},
                "rates": {rate: figures(_run(), 2) for rate in ("10", "9.5")},
            }
        },
        "load": [{"servers": "one", "load": [0.1, 0.2]}],
    }
    text = servers_report.markdown(report, "servers.png")
    row = "| one | 1 / 4, 1 refused | 3 | 0.5 | 3.00 / - | 200 / 300 | 25% | 2.5% |"
    assert [line for line in text.splitlines() if " one |" in line] == [
        f"| 9.5 {row}",
        f"| 10 {row}",
    ]
    assert "- one: 1.0; alone; `one serve`" in text
    report["servers"]["one"]["rates"]["9.5"]["ttft_p50_seconds"] = None
    servers_report.draw(report, tmp_path / "servers.png")
    assert (tmp_path / "servers.png").read_bytes().startswith(b"\x89PNG")


def test_the_rows_of_the_table_are_sent_in_turn() -> None:
    table = [Lengths(3, 5), Lengths(1, 7)]
    sent = bench_servers.requests(SERVERS[0], ["a", "b"], table, [0.0, 1.0, 2.0], "seed")
    bodies = [json.loads(request.body) for request in sent]
    assert [len(body["prompt"].split()) for body in bodies] == [3, 1, 3]
    assert [body["max_tokens"] for body in bodies] == [5, 7, 5]
    assert [request.answer_len for request in sent] == [5, 7, 5]


@pytest.mark.model
def test_a_prompt_has_as_many_tokens_as_words() -> None:
    words = bench_servers.one_token_words(bench_servers.MODEL)
    sent = bench_servers.requests(SERVERS[0], words, [Lengths(1000, 1)], [0.0] * 5, "seed")
    tokenizer = Tokenizer.from_file(str(bench_servers.MODEL / "tokenizer.json"))
    for request in sent:
        assert len(tokenizer.encode(json.loads(request.body)["prompt"]).ids) == 1000
