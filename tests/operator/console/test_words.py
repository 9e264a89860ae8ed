"""Ages, sizes and foreign text."""

import pytest

from quire_operator.console import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0, "0s"),
        (119.9, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (12_345, "3h25m"),
        (28_800, "8h"),
        (172_799, "47h"),
        (172_800, "2d"),
    ],
)
def test_ages_are_written_as_kubectl_does(seconds: float, text: str) -> None:
    assert words.age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (23_040, "23.0 kB"),
        (16.1e9, "16.1 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_sizes_are_decimal_as_in_the_conditions(count: float, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0123, "12ms"), (0.999, "999ms"), (1.5, "1.5s"), (75.4, "75.4s")],
)
def test_latencies(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_foreign_text_becomes_one_harmless_line() -> None:
    assert words.printable("a\x1b[31mb\r\n\tc\x07d\u202e \x9b") == "a [31mb c d"
    assert words.printable("größer als 8192, 上限") == "größer als 8192, 上限"
