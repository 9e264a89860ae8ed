"""Sources that lie and sources that refuse: what the fetch says of them, and what it keeps out."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quire_cluster.hub import Faults, running_mirror
from quire_cluster.tiny_models import write_tiny_model
from quire_engine.fetch import FetchOptions, SourceOptions, run_fetch

Served = Callable[[str], dict[str, bytes]]
REPO = "org/tiny"
SHARD = "model-00002-of-00003.safetensors"


# ---- a source that lies -------------------------------------------------------------------------


def test_one_wrong_byte_is_fetched_again(fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(path=SHARD, flip_byte_at=1000, times=1))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_a_wrong_byte_in_a_small_file_is_seen_too(fetch, mirror, served: Served) -> None:
    """Files outside LFS are known by git's digest alone."""
    mirror.faults(Faults(path="config.json", flip_byte_at=20, times=1))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_lasting_wrong_bytes_are_corrupt_and_never_installed(fetch, mirror) -> None:
    mirror.faults(Faults(path=SHARD, flip_byte_at=1000))
    assert fetch() == 10
    assert fetch.message["reason"] == "Corrupt"
    assert SHARD in fetch.message["message"]
    assert not (fetch.volume / "model").exists()
    mirror.faults()
    assert fetch() == 0


@pytest.mark.parametrize("delta", [-100, 100])
def test_a_wrong_length_is_corrupt(fetch, mirror, delta: int) -> None:
    mirror.faults(Faults(path=SHARD, length_delta=delta))
    assert fetch() == 10
    assert fetch.message["reason"] == "Corrupt"


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/../../b", "a\\b"])
def test_names_that_leave_the_folder_are_refused(fetch, mirror, name: str) -> None:
    mirror.faults(Faults(extra_siblings=(name,)))
    assert fetch() == 10
    assert fetch.message["reason"] == "Corrupt"
    assert mirror.downloads() == ()


# ---- a source that refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "token", "reason"),
    [
        (Faults(hidden=(REPO,)), None, "SourceNotFound"),
        (Faults(hidden=(REPO,)), "some-token", "SourceNotFound"),
        (Faults(tokens={REPO: "right"}), None, "SourceNotFound"),
        (Faults(tokens={REPO: "right"}), "wrong-token", "SourceUnauthorized"),
        (Faults(gated=(REPO,)), "some-token", "SourceUnauthorized"),
        (Faults(status=401), None, "SourceUnauthorized"),
        (Faults(status=401, listing=True), "some-token", "SourceUnauthorized"),
        (Faults(status=403), None, "SourceUnauthorized"),
        (Faults(status=404), None, "SourceNotFound"),
        (Faults(status=418), None, "SourceUnreachable"),
        (Faults(status=429, retry_after=0), None, "SourceUnreachable"),
        (Faults(status=429, retry_after=0, listing=True), None, "SourceUnreachable"),
        (Faults(status=500), None, "SourceUnreachable"),
        (Faults(status=500, listing=True), None, "SourceUnreachable"),
    ],
)
def test_refusals_have_their_reasons(
    fetch, mirror, capfd, faults: Faults, token: str | None, reason: str
) -> None:
    mirror.faults(faults)
    assert fetch(source={"token": token}) == 10
    assert fetch.message["reason"] == reason
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith("quire-engine: ")
    assert token is None or token not in said + fetch.termination.read_text()


def test_no_such_revision(fetch) -> None:
    assert fetch(revision="nowhere") == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert "nowhere" in fetch.message["message"]


def test_nobody_answers(fetch) -> None:
    source = SourceOptions(endpoint="http://127.0.0.1:9", backoff_seconds=0.001)
    options = FetchOptions(uri=f"hf://{REPO}", directory=fetch.volume, source=source)
    assert run_fetch(options) == 10
    assert fetch.message["reason"] == "SourceUnreachable"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_errors_are_waited_out(fetch, mirror, served: Served, status: int) -> None:
    mirror.faults(Faults(status=status, times=2, retry_after=0.01))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_passing_errors_of_the_listing_are_waited_out(fetch, mirror) -> None:
    mirror.faults(Faults(status=429, times=2, retry_after=0, listing=True))
    assert fetch() == 0


@pytest.mark.parametrize(("listing", "path"), [(True, REPO), (False, SHARD)])
def test_nobody_returns_before_retry_after(fetch, mirror, listing: bool, path: str) -> None:
    mirror.faults(Faults(path=path, status=429, times=1, retry_after=0.4, listing=listing))
    assert fetch(source={"part_bytes": 2**30, "backoff_seconds": 0.001}) == 0
    refused, served = [entry for entry in mirror.log if entry.path.endswith(path)]
    assert (refused.status, served.status) == (429, 200)
    assert served.time - refused.time >= 0.4


def test_a_listing_that_never_comes_is_stalled(fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(listing=True))
    begin = time.monotonic()
    assert fetch(source={"stall_seconds": 0.6}) == 10
    assert time.monotonic() - begin < 5
    assert fetch.message["reason"] == "Stalled"
    mirror.faults()
    assert fetch() == 0
    mirror.faults(Faults(listing=True))
    assert fetch(source={"stall_seconds": 0.6}) == 0, "what is complete needs no listing"
    assert fetch.installed == served(REPO)


def test_the_right_token_opens_and_is_written_nowhere(fetch, mirror, capfd) -> None:
    mirror.faults(Faults(tokens={REPO: "right-token"}))
    assert fetch(source={"token": "right-token"}) == 0
    written = [path.read_bytes() for path in fetch.volume.rglob("*") if path.is_file()]
    written += [fetch.termination.read_bytes(), capfd.readouterr().err.encode()]
    assert not any(b"right-token" in content for content in written)


def test_the_token_is_not_carried_to_another_host(fetch, mirror, served: Served) -> None:
    elsewhere = mirror.url.replace("127.0.0.1", "localhost")
    mirror.faults(Faults(tokens={REPO: "right-token"}, redirect=True, redirect_to=elsewhere))
    assert fetch(source={"token": "right-token"}) == 0
    assert fetch.installed == served(REPO)
    by_token = {entry.authorized: entry.path for entry in mirror.downloads(".safetensors")}
    assert set(by_token) == {False}
    assert by_token[False].startswith("/_signed/")


@pytest.mark.parametrize("uri", ["ftp://bucket/model", "org/model", "hf://model", "hf://a/b/c.bin"])
def test_uris_of_no_known_kind_end_with_2(fetch, uri: str) -> None:
    assert fetch(uri) == 2
    assert uri in fetch.message["message"]


def test_an_unsupported_model_is_refused_before_its_weights(fetch, mirror) -> None:
    assert fetch("hf://org/other") == 10
    assert fetch.message["reason"] == "UnsupportedModel"
    assert "MambaForCausalLM" in fetch.message["message"]
    assert mirror.downloads(".safetensors") == ()


def test_a_config_without_the_shapes_is_refused_before_the_weights(fetch, tmp_path: Path) -> None:
    repository = write_tiny_model(tmp_path / "hub/org/model")
    (repository / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with running_mirror(tmp_path / "hub") as mirror:
        assert fetch("hf://org/model", source={"endpoint": mirror.url}) == 10
        assert mirror.downloads(".safetensors") == ()
    assert fetch.message["reason"] == "UnsupportedModel"
    assert "hf://org/model" in fetch.message["message"]
