"""LoRA adapters beside a model on one volume: fetched, kept, repaired, refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire_cluster.hub import Faults, RunningMirror
from quire_engine.config import EngineConfig, LoraModule
from quire_engine.errors import ConfigError
from quire_engine.fetch import (
    AdapterFetch,
    FetchOptions,
    PlanOptions,
    SourceOptions,
    job,
    run_plan,
)
from quire_engine.fetch.manifest import check_model
from quire_engine.fetch.plan_command import find
from quire_engine.fetch.uri import parse_adapter_uri, web_host

SUPPORT = AdapterFetch("adapters/support", "hf://org/support")
SALES = AdapterFetch("adapters/sales", "hf://org/sales", "v1")
URI = "hf://org/tiny"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


def flip_last_byte(path: Path) -> int:
    """The file's size."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return len(content)


def wanted(repositories: Path, name: str) -> dict[str, bytes]:
    folder = repositories / "org" / name
    return {
        name: (folder / name).read_bytes()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }


def test_model_and_adapters_come_in_one_run(fetch: Any, repositories: Path) -> None:
    assert fetch(adapters=(SUPPORT, SALES)) == 0
    for adapter, name in ((SUPPORT, "support"), (SALES, "sales@v1")):
        folder = fetch.volume / adapter.folder
        assert files(folder) == wanted(repositories, name)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["uri"], manifest["plan"]) == (adapter.uri, None)
        assert check_model(folder / "model") is not None
    assert fetch.installed.keys() >= {"config.json", "tokenizer.json"}
    sizes = sum(path.stat().st_size for path in fetch.volume.rglob("model/*"))
    assert fetch.message["bytesTotal"] == fetch.message["bytesFetched"] == sizes
    assert fetch.message["commit"] == fetch.manifest["commit"]
    assert fetch.message["plan"]["weightBytes"] > 0


def test_a_second_run_fetches_nothing_and_asks_no_adapters_source(
    fetch: Any, mirror: RunningMirror
) -> None:
    assert fetch(adapters=(SUPPORT,)) == 0
    mirror.clear_log()
    mirror.faults(Faults(hidden=("org/support",)))
    assert fetch(adapters=(SUPPORT,)) == 0
    assert fetch.sent() == 0
    assert fetch.message["bytesFetched"] == 0


def test_an_adapter_that_is_there_is_not_moved_by_who_comes_later(
    fetch: Any, mirror: RunningMirror, repositories: Path
) -> None:
    assert fetch(adapters=(SUPPORT,)) == 0
    mirror.faults(Faults(main={"org/support": "v2"}))
    assert fetch(adapters=(SUPPORT, SALES)) == 0
    assert files(fetch.volume / SUPPORT.folder) == wanted(repositories, "support")
    assert files(fetch.volume / SALES.folder) == wanted(repositories, "sales@v1")


def test_a_repair_mends_an_adapter_by_its_bad_file_alone(
    fetch: Any, mirror: RunningMirror, repositories: Path
) -> None:
    assert fetch(adapters=(SUPPORT, SALES)) == 0
    bad = fetch.volume / SUPPORT.folder / "model/adapter_model.safetensors"
    size = flip_last_byte(bad)
    mirror.clear_log()
    mirror.faults(Faults(main={"org/support": "v2"}))
    assert fetch(adapters=(SUPPORT, SALES), repair=True) == 0
    assert files(fetch.volume / SUPPORT.folder) == wanted(repositories, "support")
    assert fetch.sent() == size


def test_a_repair_of_the_model_asks_nothing_of_an_adapter_that_is_whole(
    fetch: Any, mirror: RunningMirror
) -> None:
    """Its source may be gone, and its commit: the model is mended nevertheless."""
    assert fetch(adapters=(SUPPORT,)) == 0
    before = files(fetch.volume / SUPPORT.folder)
    flip_last_byte(next((fetch.volume / "model").glob("*.safetensors")))
    mirror.faults(Faults(hidden=("org/support",)))
    assert fetch(adapters=(SUPPORT,), repair=True) == 0
    assert files(fetch.volume / SUPPORT.folder) == before
    assert check_model(fetch.volume / "model") is not None


def test_a_cut_adapter_is_fetched_again_without_being_asked_to(fetch: Any) -> None:
    assert fetch(adapters=(SUPPORT,)) == 0
    bad = fetch.volume / SUPPORT.folder / "model/adapter_model.safetensors"
    whole = bad.read_bytes()
    bad.unlink()
    bad.write_bytes(whole[:-1])
    assert fetch(adapters=(SUPPORT,)) == 0
    assert bad.read_bytes() == whole


@pytest.mark.parametrize(
    ("repository", "reason", "words"),
    [
        ("nobody", "SourceNotFound", "adapter hf://org/nobody: hf://org/nobody"),
        ("nobody", "SourceNotFound", "correct model.adapters[].uri, or name a Secret"),
        ("dora", "UnsupportedModel", "use_dora must be off, got True"),
        ("pickled", "UnsupportedModel", "must have adapter_config.json and adapter_model.safet"),
        ("other", "UnsupportedModel", "must have adapter_config.json and adapter_model.safet"),
    ],
)
def test_a_bad_adapter_is_told_before_a_byte_of_the_model(
    fetch: Any, repository: str, reason: str, words: str
) -> None:
    assert fetch(adapters=(AdapterFetch("adapters/x", f"hf://org/{repository}"),)) == 10
    assert fetch.message["reason"] == reason
    assert words in fetch.message["message"]
    assert fetch.sent("-of-00003.safetensors") == 0


def test_a_plan_tells_of_a_bad_adapter_as_a_fetch_does(
    mirror: RunningMirror, fetch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = EngineConfig(model=URI, lora_modules=(LoraModule("x", "hf://org/nobody"),))
    source = SourceOptions(endpoint=mirror.url)
    assert run_plan(PlanOptions(model=URI, engine=engine, source=source)) == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert fetch.message["message"].startswith("adapter hf://org/nobody: hf://org/nobody at ")
    engine = EngineConfig(model=URI, lora_modules=(LoraModule("x", "hf://org/dora"),))
    assert run_plan(PlanOptions(model=URI, engine=engine, source=source)) == 10
    assert fetch.message["reason"] == "UnsupportedModel"


def test_a_volume_of_before_gets_its_adapters_and_keeps_its_model(fetch: Any) -> None:
    assert fetch() == 0
    model = fetch.volume / "model/config.json"
    before = model.stat().st_ino
    assert fetch(adapters=(SUPPORT,)) == 0
    assert model.stat().st_ino == before
    assert fetch.sent("model.safetensors") < fetch.message["bytesTotal"]


@pytest.mark.parametrize("text", ["x", "=hf://o/n", "/x=hf://o/n", "../x=hf://o/n", "x=hf://o/n#"])
def test_what_is_no_adapter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="adapter must be FOLDER=URI"):
        AdapterFetch.parse(text)


def test_adapters_as_flags() -> None:
    assert AdapterFetch.parse("a/b=hf://o/n#v1") == AdapterFetch("a/b", "hf://o/n", "v1")
    assert AdapterFetch.parse("a=https://h/x=y.tar") == AdapterFetch("a", "https://h/x=y.tar")
    assert parse_adapter_uri("hf://o/n#v1")[1] == "v1"
    with pytest.raises(ConfigError, match="not from GGUF"):
        parse_adapter_uri("hf://o/n/x.gguf")


def test_a_plan_counts_adapters_where_they_are(
    fetch: Any, mirror: RunningMirror, repositories: Path
) -> None:
    """At their source by headers alone, with the bytes to fetch; on a volume the same figures."""
    assert fetch(adapters=(SALES,)) == 0
    mirror.clear_log()

    def found(model: str, place: str) -> Any:
        engine = EngineConfig(model=model, lora_modules=(LoraModule("sales", place),))
        source = SourceOptions(endpoint=mirror.url)
        return find(PlanOptions(model=model, engine=engine, source=source))

    remote = found(URI, "hf://org/sales#v1")
    local = found(str(fetch.volume / "model"), str(fetch.volume / SALES.folder / "model"))
    [one], [other] = remote.adapters, local.adapters
    assert (one.rank, one.scale, one.dtypes) == (other.rank, other.scale, other.dtypes)
    assert remote.bytes_total == fetch.message["bytesTotal"]
    assert local.bytes_total == 0
    weights = (repositories / "org/sales@v1/adapter_model.safetensors").stat().st_size
    assert fetch.sent("adapter_model.safetensors") <= weights


def test_credentials_of_the_web_go_to_one_host() -> None:
    """The model's, or else the first adapter's: who holds an adapter learns no other's token."""
    source = SourceOptions(http_token="secret", http_login=("me", "secret"), token="hub's")
    adapters = ("hf://org/a", "https://own.example/a.tar", "https://other.example/a.tar")
    for model, meant in (
        ("https://own.example/m.tar", "own.example"),
        ("hf://org/tiny", "own.example"),
        ("https://third.example/m.tar", "third.example"),
    ):
        host = web_host((model, *adapters))
        assert host == meant
        told = [source.of_adapter(uri, host) for uri in adapters]
        assert [options.token for options in told] == ["hub's"] * 3
        tokens = {uri: options.http_token for uri, options in zip(adapters, told, strict=True)}
        logins = {uri for uri, options in zip(adapters, told, strict=True) if options.http_login}
        assert {uri for uri in adapters[1:] if tokens[uri]} == logins - {"hf://org/a"}
        assert logins - {"hf://org/a"} == {uri for uri in adapters[1:] if meant in uri}


def test_half_a_password_before_a_hash_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="no user and password") as refused:
        parse_adapter_uri("https://u:abc#def@host/a.tar")
    assert "abc" not in str(refused.value)


def test_an_adapter_without_a_name_is_refused() -> None:
    for text in ('{"name":"","path":"/x"}', '{"name":"x","path":""}', "=/x", "x="):
        with pytest.raises(ConfigError, match="lora_modules must"):
            LoraModule.parse(text)


def test_progress_tells_no_figures_of_an_adapter(
    fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    install = job._install

    def watched(this: Any, listing: Any) -> Any:
        told.append(this.progress.report())
        return install(this, listing)

    monkeypatch.setattr(job, "_install", watched)
    assert fetch(adapters=(SUPPORT,)) == 0
    adapter, model = told
    assert (adapter.commit, adapter.bytes_total, adapter.bytes_done) == ("", 0, 0)
    assert adapter.note == f"adapter {SUPPORT.uri}"
    assert (model.commit, model.note) == (fetch.message["commit"], "")
    assert model.bytes_total == fetch.message["bytesTotal"]


def test_a_model_that_is_to_be_kept_is_fetched_where_it_is_not_whole(fetch: Any) -> None:
    assert fetch(keep=True) == 0
    bad = fetch.volume / "model" / "config.json"
    whole = bad.read_bytes()
    bad.unlink()
    assert fetch(keep=True) == 0
    assert bad.read_bytes() == whole


@pytest.mark.parametrize("folder", ["model", "model/x", ".staging/x", "manifest.json"])
def test_an_adapters_folder_is_none_of_the_models(folder: str) -> None:
    with pytest.raises(ConfigError, match="adapter"):
        AdapterFetch.parse(f"{folder}=hf://org/support")


@pytest.mark.parametrize("other", ["adapters/support", "adapters", "adapters/support/x"])
def test_adapters_lie_apart(other: str, tmp_path: Path) -> None:
    second = AdapterFetch(other, "hf://org/sales")
    with pytest.raises(ConfigError, match="folders of their own"):
        FetchOptions(URI, tmp_path, adapters=(SUPPORT, second))


def test_half_a_password_of_a_flag_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="no user and password") as refused:
        AdapterFetch.parse("adapters/x=https://u:abc#def@host/a.tar")
    assert "abc" not in str(refused.value)
