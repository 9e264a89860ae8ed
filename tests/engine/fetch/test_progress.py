"""Counters, rates and the route that tells them."""

import httpx2

from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.fetch.progress import Progress, served
from quire_engine.redaction import Redactor


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.phase, progress.bytes_total, progress.bytes_done = "downloading", 10_000, 1_000
    for seconds in range(1, 31):
        clock.now = 100.0 + seconds
        progress.received(10 if seconds <= 15 else 200)
    report = progress.report()
    assert report.bytes_done == 1_000 + 150 + 3_000
    assert 190 <= report.bytes_per_second <= 210
    assert report.eta_seconds is not None
    assert 27 <= report.eta_seconds <= 31


def test_no_rate_no_promise() -> None:
    progress = Progress(Clock())
    progress.phase, progress.bytes_total = "downloading", 100
    assert progress.report().eta_seconds is None


def test_a_stopped_source_has_no_rate_in_the_end() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.phase, progress.bytes_total = "downloading", 1000
    clock.now += 1
    progress.received(100)
    clock.now += 60
    assert progress.report().bytes_per_second == 0


def test_trouble_is_told_at_once_and_its_reason_when_it_lasts() -> None:
    clock = Clock()
    progress = Progress(clock, Redactor(["geheim"]))
    clock.now += 2
    progress.trouble = SourceUnreachable("s3://bucket answered geheim with HTTP 503")
    told = progress.report()
    assert (told.note, told.reason) == ("s3://bucket answered *** with HTTP 503", "")
    clock.now += 6
    assert progress.report().reason == "SourceUnreachable"
    progress.received(1)
    assert (progress.report().note, progress.report().reason) == ("", "")


def test_silence_is_told_before_it_is_a_failure() -> None:
    clock = Clock()
    progress = Progress(clock)
    clock.now += 7
    assert progress.report().note == ""
    clock.now += 1
    assert (progress.report().note, progress.report().reason) == (
        "the source has sent nothing for 8 s",
        "",
    )
    progress.phase = "verifying"
    assert progress.report().note == "", "nothing is asked of the source"


def test_the_route() -> None:
    progress = Progress()
    progress.commit = "abc"
    with served(progress, 0) as port:
        answer = httpx2.get(f"http://127.0.0.1:{port}/progress")
        assert answer.json() == {
            "phase": "listing",
            "bytesTotal": 0,
            "bytesDone": 0,
            "bytesPerSecond": 0.0,
            "etaSeconds": None,
            "commit": "abc",
            "note": "",
            "reason": "",
        }
        assert httpx2.get(f"http://127.0.0.1:{port}/").status_code == 404


def test_no_port_no_server() -> None:
    with served(Progress(), None) as port:
        assert port is None


def test_an_adapters_figures_are_not_told_as_the_models() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.adapter, progress.commit = "hf://org/support", "of the adapter"
    progress.phase, progress.bytes_total = "downloading", 1000
    clock.now += 1
    progress.received(400)
    told = progress.report()
    assert (told.commit, told.bytes_total, told.bytes_done, told.eta_seconds) == ("", 0, 0, None)
    assert told.note == "adapter hf://org/support"
    progress.next_content()
    assert (progress.report().bytes_total, progress.report().note) == (0, "")
    progress.bytes_total, progress.bytes_done, progress.commit = 5000, 10, "c0ffee"
    told = progress.report()
    assert (told.commit, told.bytes_total, told.bytes_done) == ("c0ffee", 6000, 1010)
