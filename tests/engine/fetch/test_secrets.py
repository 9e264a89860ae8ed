"""A whole process that was given secrets, in trouble with its source: what it writes, and where."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from quire_cluster.hub import Faults

TOKEN, PASSWORD, PROXY_PASSWORD = "hf_geheimes-token", "pass+wort/geheim", "proxy-geheim"


def test_a_fetch_writes_none_of_its_secrets(fetch, mirror, tmp_path: Path) -> None:
    """The endpoint's password comes into every message that names the endpoint."""
    mirror.faults(Faults(listing=True, status=503, retry_after=0.5))
    endpoint = mirror.url.replace("://", "://user:pass%2Bwort%2Fgeheim@")
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": TOKEN,
        "HTTPS_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9",
        "TERMINATION_LOG": str(fetch.termination),
    }
    port = _unused_port()
    script = "from quire_engine.cli import main; main()"
    arguments = ["fetch", "hf://org/tiny", str(fetch.volume), "--progress-port", str(port)]
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            page = _note(port)
            _, logged = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    assert "503" in page
    for written in (page, logged.decode(), fetch.termination.read_text()):
        assert "***@127.0.0.1" in written
        for secret in (TOKEN, PASSWORD, "pass%2Bwort%2Fgeheim", PROXY_PASSWORD):
            assert secret not in written


def _unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _note(port: int) -> str:
    """What /progress says as soon as something is wrong."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            report = httpx2.get(f"http://127.0.0.1:{port}/progress", trust_env=False).json()
        except httpx2.TransportError:
            report = {}
        if report.get("note"):
            return str(report["note"])
        time.sleep(0.05)
    raise AssertionError("nothing was told at /progress")
