"""What a server leaves in the temporary folder, however it ends."""

import signal
from pathlib import Path
from typing import Any

import pytest

from quire_engine.api.core_process import CoreProcess
from quire_engine.config import EngineConfig


def test_a_server_that_is_killed_leaves_no_files(launch_server: Any, tmp_path: Path) -> None:
    """Nor does it need them once it is ready: requests, outputs and pulse go on without names."""
    server = launch_server(environment={"TMPDIR": str(tmp_path), "FAKE_STEP_SECONDS": "0.02"})
    assert list(tmp_path.glob("quire-*")) == []
    answer = server.post("/v1/completions", {"prompt": "ab", "max_tokens": 3})
    assert answer.json()["choices"][0]["text"] == "ababab"
    assert server.get("/health").status_code == 200
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    assert list(tmp_path.iterdir()) == []


def test_a_core_that_cannot_be_started_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no-such-core"):
        CoreProcess.spawn(EngineConfig(model="m"), ["/no-such-core"])
    assert list(tmp_path.iterdir()) == []
