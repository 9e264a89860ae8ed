"""`kubectl quire` as a whole: options, kubeconfig, exit codes; over an API server made here."""

import asyncio
import base64
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from aiohttp import web
from typer.testing import CliRunner, Result

from quire_operator.console.document import Document
from quire_operator.kinds import SERVICE_KIND
from quire_operator.kubectl import app
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_console import ConsoleCluster, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> ConsoleCluster:
    """With a service chat in default, ready, and nothing in other."""
    cluster = ConsoleCluster(now=time.time())
    rig = Rig(cluster=cluster)
    cluster.put(service_manifest(replicas=1))
    asyncio.run(rig.bring_up(Key("default", "chat")))
    cluster.answer()
    return cluster


@pytest.fixture
def server(cluster: ConsoleCluster) -> Iterator[str]:
    """The cluster behind HTTP, in a thread, as the commands run their own loop."""
    address: list[str] = []
    listening, done = threading.Event(), threading.Event()

    async def run() -> None:
        runner = web.AppRunner(serve(cluster))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append("http://{}:{}".format(*runner.addresses[0][:2]))
        listening.set()
        await asyncio.to_thread(done.wait)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert listening.wait(10)
    yield address[0]
    done.set()
    thread.join()


@pytest.fixture
def kubeconfig(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Context `here`, the current one, is in namespace default, `elsewhere` in namespace other."""
    contexts = {
        "here": ("up", "default"),
        "elsewhere": ("up", "other"),
        "down": ("down", "default"),
    }
    path = tmp_path / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [
            {"name": "up", "cluster": {"server": server}},
            {"name": "down", "cluster": {"server": "http://127.0.0.1:1"}},
        ],
        "users": [{"name": "kim", "user": {"token": "t"}}],
        "contexts": [
            {"name": name, "context": {"cluster": to, "user": "kim", "namespace": namespace}}
            for name, (to, namespace) in contexts.items()
        ],
    }
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setenv("COLUMNS", "120")
    return path


def quire(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def test_status_on_one_screen(kubeconfig: Path) -> None:
    result = quire("status", "chat")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("default/chat  Ready")
    assert "1 of 1 pod ready, 1 wanted" in result.stdout


def test_status_as_json(kubeconfig: Path) -> None:
    result = quire("status", "chat", "-o", "json")
    document = msgspec.json.decode(result.stdout, type=Document)
    assert (document.ready.reason, document.replicas.ready) == ("Ready", 1)
    assert document.pods[0].load is not None


def test_the_namespace_is_the_options_then_the_contexts(kubeconfig: Path) -> None:
    assert quire("status", "chat", "--context", "elsewhere").exit_code == 1
    assert quire("status", "chat", "--context", "elsewhere", "-n", "default").exit_code == 0
    said = quire("status", "chat", "-n", "other")
    assert said.exit_code == 1
    assert said.stdout == ""
    assert "there is no InferenceService chat in namespace other" in said.stderr


def test_files_of_kubeconfig_are_merged(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", f"/does/not/exist{os.pathsep}{kubeconfig}")
    assert quire("status", "chat").exit_code == 0
    monkeypatch.delenv("KUBECONFIG")
    assert quire("status", "chat", "--kubeconfig", str(kubeconfig)).exit_code == 0


def failure(*args: str) -> str:
    """The one sentence of a command that has nothing to show."""
    result = quire(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_without_a_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"there is no kubeconfig at {tmp_path}/.kube/config" in failure("status", "chat")
    assert "there is no kubeconfig at /none" in failure("top", "--once", "--kubeconfig", "/none")


def test_a_context_inside_a_pod_without_a_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not silently the service account's cluster."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.setattr("quire_operator.console.cluster.SERVICE_ACCOUNT", tmp_path)
    said = failure("status", "chat", "--context", "staging")
    assert said.startswith("--context staging needs a kubeconfig, and there is none")


def test_a_context_that_is_not_there(kubeconfig: Path) -> None:
    said = failure("status", "chat", "--context", "staging")
    assert f"{kubeconfig} has no context staging (it has: here, elsewhere, down)" in said


@pytest.mark.parametrize("text", ["", "just words", "{", "clusters: []"])
def test_a_kubeconfig_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text(text)
    said = failure("status", "chat", "--kubeconfig", str(tmp_path / "bad"))
    assert f"kubeconfig {tmp_path}/bad cannot be used" in said


def test_a_certificate_that_is_none(kubeconfig: Path) -> None:
    content = yaml.safe_load(kubeconfig.read_text())
    authority = base64.b64encode(b"no certificate").decode()
    content["clusters"][0]["cluster"] = {
        "server": "https://127.0.0.1:1",
        "certificate-authority-data": authority,
    }
    kubeconfig.write_text(yaml.safe_dump(content))
    assert f"kubeconfig {kubeconfig} cannot be used: its certificates: " in failure("status", "x")


def test_no_cluster_there(kubeconfig: Path) -> None:
    for command in (["status", "chat"], ["top", "--once"]):
        said = failure(*command, "--context", "down")
        assert "http://127.0.0.1:1 gives no answer" in said


def test_a_service_that_no_operator_looks_at(kubeconfig: Path, cluster: ConsoleCluster) -> None:
    cluster.put(service_manifest("alone"))
    said = failure("status", "alone")
    assert "default/alone was made" in said
    assert "has no status: no operator of quire looks at it" in said


def test_a_cluster_without_quire(kubeconfig: Path, cluster: ConsoleCluster) -> None:
    cluster.unknown = {SERVICE_KIND}
    assert "quire is not installed there" in failure("status", "chat")
    assert "quire is not installed there" in failure("top", "--once")


def test_what_is_forbidden_leaves_the_rest_and_succeeds(
    kubeconfig: Path, cluster: ConsoleCluster
) -> None:
    cluster.forbidden = {"events", "pods/proxy"}
    result = quire("status", "chat")
    assert result.exit_code == 0
    assert "NOT SHOWN" in result.stdout
    assert "default/chat  Ready" in result.stdout


def test_top_once(kubeconfig: Path, cluster: ConsoleCluster) -> None:
    """Two looks, one table: tokens a second are those in between."""
    [name] = cluster.engine_pods()
    tokens = iter((100, 200, 300))
    body = cluster.pages[name, 8000, "/metrics"]
    assert isinstance(body, bytes)
    cluster.pages[name, 8000, "/metrics"] = lambda: body.replace(
        b"generation_tokens_total 0", b"generation_tokens_total %d" % next(tokens)
    )
    result = quire("top", "--once", "--interval", "0.5")
    assert result.exit_code == 0, result.output
    head, line = result.stdout.splitlines()
    assert head.split() == ["NAME", "READY", "RUN", "WAIT", "KV", "TTFT", "p95", "TOKENS/S"]
    assert line.split()[:5] == ["chat", "1/1", "2", "0", "25%"]
    assert 50 < float(line.split()[6]) <= 200


def test_top_of_all_namespaces(kubeconfig: Path) -> None:
    result = quire("top", "--once", "--interval", "0.5", "-A", "--context", "elsewhere")
    assert result.stdout.splitlines()[1].split()[:2] == ["default", "chat"]


def test_an_option_that_is_wrong(kubeconfig: Path) -> None:
    assert quire("status", "chat", "-o", "yaml").exit_code == 2
    assert quire("top", "--interval", "0").exit_code == 2


QUIRE = [sys.executable, "-m", "quire_operator.kubectl"]


def read_until(terminal: int, word: bytes, seconds: float = 60) -> bytes:
    """What the program writes until `word` is in it."""
    seen, deadline = b"", time.monotonic() + seconds
    while word not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 65536)
    return seen


@pytest.mark.parametrize("ends", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_the_live_table_ends_by_a_key_and_leaves_the_terminal_as_it_was(
    kubeconfig: Path, ends: bytes
) -> None:
    ours, theirs = pty.openpty()
    before = subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout
    with subprocess.Popen(
        [*QUIRE, "top", "--interval", "0.5"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,
    ) as program:
        shown = read_until(ours, b"chat")
        assert b"\x1b[?1049h" in shown, "on the terminal's other screen"
        os.write(ours, ends)
        assert b"Traceback" not in read_until(ours, b"\x1b[?1049l")
        assert program.wait(30) == 0
    after = subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout
    assert after == before
    os.close(ours)
    os.close(theirs)


def _take_terminal() -> None:
    """In the child: makes the pty its terminal, so that Ctrl-C is a signal, and one that is heeded:
    a shell's background jobs, of which the tests may be one, ignore it."""
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_pipe_that_ends_is_no_error(kubeconfig: Path) -> None:
    """As with `| head`: without --once a table each interval."""
    with subprocess.Popen(
        [*QUIRE, "top", "--interval", "0.5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline().startswith(b"NAME")
        assert program.stdout.readline().startswith(b"chat")
        program.stdout.close()
        assert program.wait(30) == 0
        assert program.stderr.read() == b""


def test_help_does_not_wait_for_what_commands_import() -> None:
    """Cheap to break by one import at the top; kubectl asks plugins for nothing but this."""
    code = (
        "import sys, quire_operator.kubectl; "
        "print([m for m in ('aiohttp', 'asyncio', 'kubernetes', 'kopf', 'msgspec', 'torch', 'yaml')"
        " if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"


def test_the_console_script_is_declared() -> None:
    assert 'kubectl-quire = "quire_operator.kubectl:main"' in (ROOT / "pyproject.toml").read_text()
