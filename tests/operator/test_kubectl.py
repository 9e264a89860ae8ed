"""kubectl quire status, over a kubectl that is a script."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quire_operator.kubectl import app
from quire_operator.testing import service_manifest


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl on PATH that notes its arguments and answers with answer.json."""
    body = service_manifest()
    body["metadata"]["generation"] = 1
    body["status"] = {
        "observedGeneration": 1,
        "url": "http://chat.default.svc.cluster.local/v1",
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "Fetching",
                "message": "1.2 of 16.1 GB, 40 s left",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-11-21T10:00:00Z",
            }
        ],
        "scaling": {
            "decisions": [
                {
                    "time": "2026-11-21T10:00:00Z",
                    "from": 1,
                    "to": 2,
                    "reason": "queue",
                    "inputs": {},
                }
            ]
        },
    }
    (tmp_path / "answer.json").write_text(json.dumps(body))
    script = tmp_path / "kubectl"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/args\nexec cat {tmp_path}/answer.json\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def test_text(kubectl: Path) -> None:
    result = CliRunner().invoke(app, ["status", "chat", "-n", "default"])
    assert result.exit_code == 0, result.output
    assert "default/chat  Fetching: 1.2 of 16.1 GB, 40 s left" in result.output
    assert "1 -> 2" in result.output
    args = (kubectl / "args").read_text().split()
    assert args == [
        "get",
        "inferenceservices.serving.quire.dev",
        "chat",
        "-o",
        "json",
        "-n",
        "default",
    ]


def test_json(kubectl: Path) -> None:
    result = CliRunner().invoke(app, ["status", "chat", "-o", "json"])
    assert json.loads(result.output)["conditions"][0]["reason"] == "Fetching"


def test_kubectls_own_error_is_passed_on(kubectl: Path) -> None:
    (kubectl / "kubectl").write_text("#!/bin/sh\necho 'Error from server (NotFound)' >&2\nexit 1\n")
    result = CliRunner().invoke(app, ["status", "none"])
    assert result.exit_code == 1


def test_without_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["status", "chat"])
    assert result.exit_code == 2
    assert "kubectl is not on PATH" in result.output
