"""Every source goes through the proxy that the environment names: here the mirror is that proxy,
and the addresses asked for are no one's."""

from pathlib import Path

import pytest
import trustme

SECRET = "proxy-secret"


@pytest.fixture(autouse=True)
def proxied(monkeypatch: pytest.MonkeyPatch, mirror, tmp_path: Path) -> None:
    bundle = tmp_path / "roots.pem"
    trustme.CA().cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    address = mirror.url.removeprefix("http://")
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{SECRET}@{address}")


NOWHERE = "http://nowhere.invalid"
SOURCES = [
    ("hf://org/tiny", {"endpoint": NOWHERE}),
    ("s3://org/tiny", {"storage": {"AWS_ENDPOINT_URL": f"{NOWHERE}/s3"}}),
    ("gs://org/tiny", {"storage": {"GOOGLE_BASE_URL": f"{NOWHERE}/gs"}}),
    (
        "az://org/tiny",
        {
            "storage": {
                "AZURE_STORAGE_ENDPOINT": f"{NOWHERE}/az",
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
            }
        },
    ),
]


@pytest.mark.parametrize(("uri", "source"), SOURCES, ids=["hf", "s3", "gs", "az"])
def test_listing_and_bytes_go_through_the_proxy(fetch, mirror, uri: str, source) -> None:
    assert fetch(uri, source=source) == 0
    assert mirror.downloads(".safetensors") != ()


@pytest.mark.parametrize(("uri", "source"), SOURCES, ids=["hf", "s3", "gs", "az"])
def test_not_for_those_it_leaves_out(
    fetch, mirror, uri: str, source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", ".invalid")
    assert fetch(uri, source=source) == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    assert mirror.log == ()
    assert SECRET not in fetch.termination.read_text()
