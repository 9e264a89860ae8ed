import json
import tomllib
from pathlib import Path

import pytest

from quire_cluster import configs, manifests
from quire_cluster.build import Binaries
from quire_cluster.control_plane import Programs
from quire_cluster.layout import Layout
from quire_cluster.network import NODE_ADDRESS, REGISTRY

LAYOUT = Layout(Path("/cache"))


@pytest.fixture
def programs() -> Programs:
    return Programs(LAYOUT, Binaries(LAYOUT.cache))


def test_every_rendered_file_is_of_its_format(programs: Programs) -> None:
    for path, text in programs.config_files().items():
        if path.suffix == ".toml":
            assert tomllib.loads(text)
        elif path.suffix in {".yaml", ".json", ".conflist"}:
            assert json.loads(text)


def test_containerd_keeps_to_its_own_folders(programs: Programs) -> None:
    config = tomllib.loads(configs.containerd(LAYOUT, Path("/cni")))
    assert config["root"] == "/cache/containerd"
    assert config["state"].startswith(str(LAYOUT.run))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    hosts = Path(cri["registry"]["config_path"]) / REGISTRY / "hosts.toml"
    assert hosts in programs.config_files()


def test_programs_name_only_files_that_are_written(programs: Programs) -> None:
    files = {str(path) for path in programs.config_files()}
    for spec in programs.all():
        for word in spec.command:
            value = word.partition("=")[2] or word
            if value.startswith(str(LAYOUT.configs)):
                assert value in files


def test_the_state_of_one_life_lies_in_one_folder(programs: Programs) -> None:
    """`down` removes that folder and leaves the stores of images."""
    assert not LAYOUT.containerd.is_relative_to(LAYOUT.state)
    assert not LAYOUT.registry.is_relative_to(LAYOUT.state)
    assert all(path.is_relative_to(LAYOUT.state) for path in programs.config_files())


def test_scaling_to_zero_is_on_where_both_sides_ask_for_it(programs: Programs) -> None:
    for spec in (programs.api_server(), programs.controller_manager()):
        assert "--feature-gates=HPAScaleToZero=true" in spec.command


def test_a_digest_follows_command_and_inputs(programs: Programs) -> None:
    digests = {spec.digest() for spec in programs.all()}
    assert len(digests) == len(programs.all())
    assert programs.etcd().digest() == programs.etcd().digest()


def test_every_write_of_a_service_account_is_audited() -> None:
    """The first rule that matches decides; an operator's writes must match none of the silent."""
    rules = json.loads(configs.audit_policy())["rules"]
    assert rules[-1] == {"level": "Metadata"}
    for rule in rules[:-1]:
        reads_only = set(rule.get("verbs", [])) == {"get", "list", "watch"}
        assert reads_only or not any("serviceaccount" in user for user in rule["users"])


def test_pods_ask_our_name_server() -> None:
    assert json.loads(configs.kubelet(LAYOUT, "/quire"))["clusterDNS"] == [NODE_ADDRESS]
    assert f"nameserver {NODE_ADDRESS}\n" in configs.resolv_conf()


def test_one_storage_class_is_the_default() -> None:
    items = json.loads(json.dumps(manifests.initial_objects()))["items"]
    default = [
        item["metadata"]["name"]
        for item in items
        if item["kind"] == "StorageClass" and item["metadata"]["annotations"]
    ]
    assert default == [configs.DEFAULT_STORAGE_CLASS]


def test_a_small_volume_may_claim_more_than_it_holds() -> None:
    volume = json.loads(json.dumps(manifests.small_volume("full", "/cache/full", "1Gi")))
    assert volume["spec"]["capacity"] == {"storage": "1Gi"}
    assert volume["spec"]["local"] == {"path": "/cache/full"}
    assert volume["spec"]["storageClassName"] == configs.SMALL_STORAGE_CLASS
