"""The scraper against real servers on loopback: sound pages, and everything that is not one."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import prometheus_client
import pytest
from aiohttp import web

from quire_operator import scraper
from quire_operator.scaling import PodLoad
from quire_operator.scraper import Missing, PodMetrics, parse

PAGE = b"""\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="chat"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 3.0
vllm:num_requests_running{engine="0",model_name="chat"} 16.0
vllm:kv_cache_usage_perc{engine="0",model_name="chat"} 0.25
quire_max_num_seqs 16.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="chat"} 3.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="chat"} 2.0
process_start_time_seconds 1.795e+09
quire_metrics_time_seconds 1.7950000255e+09
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="chat"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="chat"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="chat"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="chat"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="chat"} 5.5
"""


def parsed(body: bytes) -> PodMetrics:
    result = parse(body)
    assert isinstance(result, PodMetrics), result
    return result


def refused(body: bytes) -> str:
    result = parse(body)
    assert isinstance(result, Missing), result
    return result.why


# ---- parsing ------------------------------------------------------------------------------------


def test_a_page_of_the_engines() -> None:
    metrics = parsed(PAGE)
    assert metrics.load == PodLoad(7.0, 16.0, 0.25, slots=16)
    assert metrics.ttft is not None
    assert metrics.ttft.bounds == (0.1, 1.0, float("inf"))
    assert metrics.ttft.counts == (1, 3, 4)
    assert metrics.ended == 5.0
    assert (metrics.started, metrics.made) == (1_795_000_000.0, 1_795_000_025.5)


def test_what_the_client_library_writes_is_read() -> None:
    registry = prometheus_client.CollectorRegistry()
    odd = 'a "quoted" {name}, le="9" \\ and more'
    for name, value in (("num_requests_waiting", 3), ("num_requests_running", 2)):
        gauge = prometheus_client.Gauge(f"vllm:{name}", "help", ["model_name"], registry=registry)
        gauge.labels(odd).set(value)
    histogram = prometheus_client.Histogram(
        "vllm:time_to_first_token_seconds", "x", ["model_name"], registry=registry, buckets=(0.5, 2)
    )
    histogram.labels(odd).observe(1.0)
    metrics = parsed(prometheus_client.generate_latest(registry))
    assert metrics.load == PodLoad(3.0, 2.0, None)
    assert metrics.ttft is not None
    assert metrics.ttft.bounds == (0.5, 2.0, float("inf"))
    assert metrics.ttft.counts == (0, 1, 1)


def test_several_engines_in_one_pod_add_up_and_the_fullest_cache_counts() -> None:
    second = PAGE.replace(b'engine="0"', b'engine="1"').replace(b"} 0.25", b"} 0.75")
    metrics = parsed(PAGE + second.replace(b"quire_max_num_seqs 16.0\n", b""))
    assert metrics.load == PodLoad(14.0, 32.0, 0.75, slots=16)
    assert metrics.ttft is not None
    assert metrics.ttft.counts == (2, 6, 8)


def test_a_page_without_end_of_line_and_without_labels() -> None:
    metrics = parsed(b"vllm:num_requests_waiting 2")
    assert metrics == PodMetrics(PodLoad(2.0, None, None), None)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "answered without vllm:num_requests_waiting"),
        (b"<html>503</html>", "answered without vllm:num_requests_waiting"),
        (b"vllm:num_request_waiting 3\n", "answered without vllm:num_requests_waiting"),
        (b"vllm:num_requests_waiting NaN\n", "garbage: vllm:num_requests_waiting is NaN"),
        (b"vllm:num_requests_waiting -1\n", "garbage: vllm:num_requests_waiting is -1"),
        (b"vllm:num_requests_waiting +Inf\n", "garbage: vllm:num_requests_waiting is +Inf"),
        (b"vllm:num_requests_waiting three\n", "garbage: vllm:num_requests_waiting is three"),
        (b"vllm:num_requests_waiting \n", "garbage: vllm:num_requests_waiting has no value"),
        (b'vllm:num_requests_waiting{a="b\n', "garbage: vllm:num_requests_waiting has no value"),
        (PAGE.replace(b' 3.0\nvllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"',
                      b' 9.0\nvllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"'),
         "garbage: vllm:time_to_first_token_seconds_bucket is no cumulative histogram"),
        (PAGE.replace(b'le="0.1",', b""), "bucket has no le"),
        (PAGE.replace(b'le="0.1"', b'le="x"'), "garbage"),
        (PAGE.replace(b'le="0.1"', b'le="NaN"'), "no cumulative histogram"),
        (PAGE.replace(b"1.7950000255e+09", b"now"), "garbage: quire_metrics_time_seconds is now"),
        (PAGE.replace(b"} 2.0\nprocess", b"} -2\nprocess"), "request_success_total is -2"),
        (bytes(range(256)) * 100, "answered without"),
    ],
)  # fmt: skip
def test_garbage_is_missing(body: bytes, why: str) -> None:
    assert why in refused(body)


def test_parsing_takes_well_under_a_millisecond() -> None:
    """3,000 pods a round: a page of vLLM's size may not cost more. Best of 20, so that other work
    on the machine does not count."""
    page = b"".join(
        b'vllm:some_histogram_%d_bucket{engine="0",le="%d",model_name="chat"} 4.0\n' % (i // 20, i)
        for i in range(900)
    )
    body = page[:30_000] + b"\n" + PAGE + page[30_000:]
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        parse(body)
        best = min(best, time.perf_counter() - start)
    assert best < 0.001


# ---- fetching -----------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    """Starts servers on loopback; gives the address of their /metrics."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_get("/metrics", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return scraper.metrics_url("127.0.0.1", runner.addresses[0][1])

    yield start
    for runner in runners:
        await runner.cleanup()


Serve = Callable[[Handler], Awaitable[str]]


async def test_a_sound_pod(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=PAGE)

    assert await scraper.scrape(await serve(handler), 5) == parse(PAGE)


async def hang(_request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def trickle(request: web.Request) -> web.StreamResponse:
    """Sends a byte now and then for ever: every read returns in time, the whole never ends."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"#")
        await asyncio.sleep(0.01)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"# more\n" * 10_000)


async def failing(_request: web.Request) -> web.Response:
    return web.Response(status=500, body=PAGE)


async def elsewhere(_request: web.Request) -> web.Response:
    raise web.HTTPFound("http://169.254.169.254/latest/meta-data")


async def html(_request: web.Request) -> web.Response:
    return web.Response(text="<html>login</html>", content_type="text/html")


async def bomb(_request: web.Request) -> web.Response:
    return web.Response(body=gzip.compress(PAGE), headers={"Content-Encoding": "gzip"})


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(PAGE[:80])
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (hang, "did not answer within 0.2 s"),
        (trickle, "did not answer within 0.2 s"),
        (endless, "answered more than 2097152 bytes"),
        (failing, "answered 500"),
        (elsewhere, "answered 302"),
        (html, "answered without"),
        (bomb, "answered without"),
        (cut_off, "cannot be read"),
    ],
)
async def test_a_pod_that_misbehaves_is_missing(handler: Handler, why: str, serve: Serve) -> None:
    url = await serve(handler)
    deadline = 0.2 if "did not answer" in why else 20.0
    result = await scraper.scrape(url, deadline)
    assert isinstance(result, Missing)
    assert why in result.why


async def test_nobody_listens(unused_tcp_port: int) -> None:
    result = await scraper.scrape(scraper.metrics_url("127.0.0.1", unused_tcp_port), 5)
    assert isinstance(result, Missing)
    assert result.why.startswith("cannot be read")


async def test_pods_that_hang_hold_nobody_up(serve: Serve) -> None:
    """200 hanging requests at once, and a sound pod beside them still answers."""

    async def sound(_request: web.Request) -> web.Response:
        return web.Response(body=PAGE)

    hanging, good = await serve(hang), await serve(sound)
    stuck = [asyncio.create_task(scraper.scrape(hanging, 30)) for _ in range(200)]
    await asyncio.sleep(0)
    assert isinstance(await scraper.scrape(good, 20), PodMetrics)
    assert not any(task.done() for task in stuck)
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


def test_addresses_of_both_families() -> None:
    assert scraper.metrics_url("10.0.0.7", 8000) == "http://10.0.0.7:8000/metrics"
    assert scraper.metrics_url("fd00::7", 8000) == "http://[fd00::7]:8000/metrics"
