from pathlib import Path

import pytest

from quire_cluster import build
from quire_cluster.build import Binaries
from quire_cluster.versions import ALL_TOOLS, KUBERNETES_TOOL, GoTool


@pytest.mark.parametrize("tool", ALL_TOOLS.values(), ids=lambda tool: tool.name)
def test_the_table_and_the_go_modules_agree(tool: GoTool) -> None:
    text = (build.GO_FOLDER / tool.folder / "go.mod").read_text()
    if tool.module:
        assert f"{tool.module} {tool.version}" in text
    for package in tool.programs.values():
        assert package == "." or package in text


def test_the_names_that_go_build_gives() -> None:
    names = {
        program: build.default_name(package, KUBERNETES_TOOL)
        for program, package in KUBERNETES_TOOL.programs.items()
    }
    assert names["etcd"] == "server"  # go.etcd.io/etcd/server/v3
    assert names["kubelet"] == "kubelet"
    assert len(set(names.values())) == len(names)


def test_one_command_builds_all_programs_with_checked_hashes() -> None:
    command = build.go_build_command(KUBERNETES_TOOL, Path("/out"))
    assert "-mod=readonly" in command
    assert set(KUBERNETES_TOOL.programs.values()) <= set(command)
    [flags] = [word for word in command if word.startswith("-s -w")]
    assert "-X k8s.io/component-base/version.gitVersion=v1.34.4" in flags


def test_a_staging_folder_is_no_build(tmp_path: Path) -> None:
    binaries = Binaries(tmp_path)
    (tmp_path / "bin/.kubernetes-1").mkdir(parents=True)
    assert binaries.missing([KUBERNETES_TOOL]) == [KUBERNETES_TOOL]
    binaries.folder(KUBERNETES_TOOL).mkdir()
    assert binaries.missing([KUBERNETES_TOOL]) == []
