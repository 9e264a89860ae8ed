"""URIs and names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.errors import ConfigError
from quire_engine.fetch.uri import (
    HubUri,
    ModelUri,
    ObjectUri,
    WebUri,
    is_safe_path,
    parse_uri,
)


@pytest.mark.parametrize(
    ("uri", "parsed"),
    [
        ("hf://org/name", HubUri("org/name")),
        ("hf://Org-1/name.v2_x", HubUri("Org-1/name.v2_x")),
        ("hf://org/name/file.gguf", HubUri("org/name", "file.gguf")),
        ("hf://org/name/sub/file.gguf", HubUri("org/name", "sub/file.gguf")),
        ("s3://bucket", ObjectUri("s3", "bucket", "")),
        ("s3://bucket/a/b/", ObjectUri("s3", "bucket", "a/b")),
        ("gs://bucket.example/a/file.gguf", ObjectUri("gs", "bucket.example", "a", "file.gguf")),
        ("az://container/file.gguf", ObjectUri("az", "container", "", "file.gguf")),
        ("https://h.example:8443/a/f.gguf", WebUri("https://h.example:8443/a/f.gguf", "f.gguf")),
        ("https://[2001:db8::1]/a/m.tar", WebUri("https://[2001:db8::1]/a/m.tar")),
    ],
)
def test_uris(uri: str, parsed: ModelUri) -> None:
    assert parse_uri(uri) == parsed


@pytest.mark.parametrize(
    "uri",
    ["", "org/name", "http://x/y", "hf://", "hf://name", "hf://org/", "hf://org/..", "hf://../x",
     "hf://org/name/", "hf://org/name/file.bin", "hf://org/name/../../x.gguf", "hf://o?x/n",
     "s3://", "s3:///x", "s3://b//x", "s3://b/../x", "gs://b c/x", "az://-c/x", "pvc://c/x",
     "https://", "https://h", "https://h/", "https://h/x.bin", "https://h/../x.gguf",
     "http://h/x.gguf", "https://u:p@h/x.gguf", "https://h/x.gguf?sig=1", "https://h/x.tar#1", "https://h/x.tar.gz"],
)  # fmt: skip
def test_bad_uris(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"got"):
        parse_uri(uri)


@given(st.text(alphabet=st.sampled_from("ab./\\\0~ "), max_size=12))
def test_safe_paths_stay_inside(path: str) -> None:
    if is_safe_path(path):
        inside = Path("/model")
        joined = (inside / path).resolve()
        assert joined != inside
        assert inside in joined.parents


@pytest.mark.parametrize("uri", ["https://u:secret@h/x.gguf", "https://h/x.gguf?sig=secret"])
def test_what_a_uri_should_not_carry_is_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_uri(uri)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://org/name/f.gguf", "hf://org/name"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("az://container/f.gguf", "az://container"),
        ("https://h/a/f.gguf", "https://h/a"),
        ("https://h/a/m.tar", "https://h/a/m.tar"),
    ],
)
def test_places_have_names_for_people(uri: str, name: str) -> None:
    assert parse_uri(uri).name == name
