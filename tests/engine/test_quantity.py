import pytest

from quire_engine.errors import ConfigError
from quire_engine.quantity import parse_bytes

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("24GiB", 24 * GIB), ("24Gi", 24 * GIB), ("1.5G", 1_500_000_000), ("80 GB", 80 * 10**9),
        ("512", 512), ("512B", 512), ("64Mi", 64 << 20), ("3k", 3000), ("1Ki", 1024),
        ("1e9", 10**9), ("12E6", 12 * 10**6), ("2E", 2 * 10**18), ("1Ei", 1 << 60),
        # Kubernetes' own example of a quantity in thousandths; a part of a byte counts as one
        ("128974848000m", 128_974_848), ("0.3", 1), ("0.1Gi", 107_374_183),
        ("9007199254740993", 9_007_199_254_740_993),
    ],
)  # fmt: skip
def test_quantities(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "lots", "24 apples", "-1Gi", "Gi", "24gi", "24K", "1e999", "5mB", "1Gi2", "1Gi\n2"]
)
def test_bad_quantities(text: str) -> None:
    with pytest.raises(ConfigError, match=r"got .*; write it as 24GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["512m", "1500m", "7u", "1n"])
def test_thousandths_are_not_taken_for_millions(text: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"whole bytes, got '{text}', where . means 1/10+; write"
    ):
        parse_bytes(text)
