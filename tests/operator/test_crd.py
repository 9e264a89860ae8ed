"""The committed CRD is the one that the types say, and small enough."""

import re
from pathlib import Path

import pytest
import yaml

from quire_operator import api, crd
from quire_operator.api.model import URI_RULE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", crd.FOLDERS)
def test_committed_file_equals_the_generated_one(folder: str) -> None:
    committed = (ROOT / folder / crd.FILE_NAME).read_text()
    assert committed == crd.render(), "run `python -m quire_operator.crd` and commit the result"


def test_definition_fits_kubectls_annotation() -> None:
    assert len(crd.render().encode()) < crd.MAX_BYTES


def walk(schema: crd.Schema, path: str = "") -> list[tuple[str, crd.Schema]]:
    found = [(path, schema)]
    for name, field in (schema.get("properties") or {}).items():
        found += walk(field, f"{path}.{name}")
    return found + (walk(schema["items"], f"{path}[]") if "items" in schema else [])


def fields() -> list[tuple[str, crd.Schema]]:
    version = yaml.safe_load(crd.render())["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]["properties"]
    return walk(root["spec"], "spec") + walk(root["status"], "status")


def test_every_field_is_described() -> None:
    bare = [path for path, schema in fields() if "description" not in schema and "[]" not in path]
    assert bare == []


def test_every_field_has_a_type() -> None:
    untyped = [
        path
        for path, schema in fields()
        if "type" not in schema and not schema.get("x-kubernetes-int-or-string")
    ]
    assert untyped == []


def test_defaults_are_those_of_the_types() -> None:
    by_path = dict(fields())
    assert by_path["spec.replicas"]["default"] == 1
    assert by_path["spec.resources.gpus"]["default"] == 1
    assert by_path["spec.cache"]["default"]["mode"] == "shared"
    assert by_path["spec.scaling.targets"]["default"] == {
        "queueDepth": 4,
        "kvCacheUtilization": 0.9,
    }
    assert "default" not in by_path["spec.engine.maxModelLen"], "the engine decides"


def test_status_has_no_defaults() -> None:
    assert [p for p, s in fields() if p.startswith("status") and "default" in s] == []


def test_pod_template_keeps_what_we_do_not_know() -> None:
    assert dict(fields())["spec.podTemplate"]["x-kubernetes-preserve-unknown-fields"] is True


def test_credentials_and_pods_that_fetch_for_themselves_are_refused_together() -> None:
    rules = dict(fields())["spec"]["x-kubernetes-validations"]
    refused = [rule for rule in rules if "credentialsSecret" in rule["rule"]]
    assert [rule["rule"] for rule in refused] == [
        "self.cache.mode != 'none' || !has(self.model.credentialsSecret)"
    ]
    assert refused[0]["message"].endswith("or remove model.credentialsSecret")


def test_quantization_and_gpus_are_refused_together() -> None:
    assert dict(fields())["spec.engine.quantization"]["enum"] == ["int4", "int8"]
    rules = dict(fields())["spec"]["x-kubernetes-validations"]
    [refused] = [rule for rule in rules if "quantization" in rule["rule"]]
    assert refused["rule"] == "!has(self.engine.quantization) || self.resources.gpus == 0"
    assert refused["message"].endswith("set resources.gpus 0, or remove engine.quantization")


def test_scale_and_columns() -> None:
    version = crd.definition()["spec"]["versions"][0]
    assert version["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"
    names = [column["name"] for column in version["additionalPrinterColumns"]]
    assert names == ["Ready", "Reason", "Replicas", "Model", "URL", "Age"]
    assert crd.definition()["spec"]["names"]["shortNames"] == ["qis"]


def test_a_default_object_in_the_schema_decodes_to_the_types_default() -> None:
    by_path = dict(fields())
    filled = {
        name: by_path[f"spec.{name}"]["default"]
        for name in ("engine", "resources", "cache", "scaling", "rollout")
    }
    spec = api.decode_spec({"model": {"uri": "hf://a/b"}, **filled})
    assert spec == api.decode_spec({"model": {"uri": "hf://a/b"}})


def test_a_type_without_a_structural_schema_is_refused() -> None:
    import msgspec

    class Odd(msgspec.Struct):
        either: int | bool

    with pytest.raises(TypeError, match="int-or-string"):
        crd.schema_of(msgspec.inspect.type_info(Odd).fields[0].type)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("uri", "taken"),
    [
        ("hf://org/model", True),
        ("hf://org/model/file.gguf", True),
        ("s3://bucket", True),
        ("s3://bucket/a/b/", True),
        ("gs://bucket/a/file.gguf", True),
        ("az://container/a", True),
        ("https://host.example:8443/a/file.gguf", True),
        ("https://host/a.tar", True),
        ("pvc://claim/path", True),
        ("s3://", False),
        ("s3://bucket//a", False),
        ("az://container/a b", False),
        ("https://host/a.tar.gz", False),
        ("https://host/folder", False),
        ("https://user:secret@host/a.tar", False),
        ("https://host/a.tar?signature=secret", False),
        ("http://host/a.tar", False),
        ("ftp://host/a.tar", False),
    ],
)
def test_uris_that_the_definition_takes(uri: str, taken: bool) -> None:
    """CEL's `matches` is RE2, of which these patterns use what Python has too."""
    patterns = re.findall(r"self\.matches\('([^']+)'\)", URI_RULE.rule)
    assert len(patterns) == URI_RULE.rule.count("matches")
    assert any(re.search(pattern, uri) for pattern in patterns) is taken
