"""The cluster's long-running programs, each known by a pid file that it writes itself.

A pid alone proves nothing: after a crash it may belong to someone else. Every program is therefore
started with a marker in its environment, and a pid counts as ours only while /proc shows it there.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quire_cluster.errors import NotReadyError

_MARKER = "QUIRE_CLUSTER_STATE"
_TERM_SECONDS = 2.0
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.05
# While a process execs, /proc shows its environment as empty: it is asked again for so long.
_EXEC_SECONDS = 1.0
_EXEC_POLL_SECONDS = 0.001
# The shell writes its own pid and then becomes the program: no moment without a pid file.
_LAUNCH = 'cd / && echo $$ >"$1.tmp" && mv "$1.tmp" "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class ProcessSpec:
    """name: of the pid file and the log; command: its arguments; environment: laid over ours;
    inputs: whatever else decides how it runs (its configuration's text)."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    inputs: str = ""

    def digest(self) -> str:
        text = repr((self.command, sorted(self.environment.items()), self.inputs))
        return hashlib.sha256(text.encode()).hexdigest()


class ProcessTable:
    """Starts, finds and ends the programs of one cluster."""

    def __init__(self, run: Path, logs: Path, marker: Path, prefix: Iterable[str] = ()) -> None:
        self._run = run
        self._logs = logs
        self._marker = str(marker)
        self._prefix = tuple(prefix)

    def pid(self, name: str) -> int | None:
        """The pid of a running program of ours, else None."""
        try:
            pid = int((self._run / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if is_marked(pid, self._marker) else None

    def names(self) -> list[str]:
        """All programs with a pid file, alive or not."""
        return sorted(path.stem for path in self._run.glob("*.pid"))

    def runs_as(self, spec: ProcessSpec) -> bool:
        """Whether the program runs, and was started from this very specification."""
        digest = self._run / f"{spec.name}.digest"
        return (
            self.pid(spec.name) is not None
            and digest.is_file()
            and digest.read_text() == spec.digest()
        )

    def start(self, spec: ProcessSpec) -> None:
        """Start a program unless it runs; its output goes to `logs/<name>.log`."""
        if self.pid(spec.name) is not None:
            return
        (self._run / f"{spec.name}.digest").write_text(spec.digest())
        pid_file = self._run / f"{spec.name}.pid"
        pid_file.unlink(missing_ok=True)
        log = str(self._logs / f"{spec.name}.log")
        os.posix_spawn(  # not Popen: nobody waits for this child, it is meant to outlive us
            "/bin/sh",
            ["sh", "-c", _LAUNCH, "sh", str(pid_file), *self._prefix, *spec.command],
            {**os.environ, **spec.environment, _MARKER: self._marker},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited()),
            ],
            setsid=True,
        )
        wait_for(pid_file.exists, f"the start of {spec.name}", seconds=10)

    def stop(self, names: Iterable[str]) -> None:
        """End programs: SIGTERM, and SIGKILL for what is still there after some seconds."""
        pids = {name: pid for name in names if (pid := self.pid(name)) is not None}
        for sent, patience in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            for pid in pids.values():
                _send(pid, sent)
            deadline = time.monotonic() + patience
            while pids and time.monotonic() < deadline:
                pids = {name: pid for name, pid in pids.items() if is_marked(pid, self._marker)}
                time.sleep(_POLL_SECONDS)

    def last_lines(self, name: str, count: int = 15) -> str:
        log = self._logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        return "\n".join(lines[-count:])


def _inherited() -> list[int]:
    """What a child would inherit beside its three streams: a caller's `flock`, say, which a program
    that outlives him would hold for ever."""
    opened = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in opened if fd > 2 and _is_inheritable(fd)]


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the listing's own, closed by now
        return False


def is_marked(pid: int, marker: str) -> bool:
    """Whether a process lives (no zombie) and carries our marker in its environment."""
    deadline = time.monotonic() + _EXEC_SECONDS
    while True:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False
        if environ or state == "Z" or time.monotonic() > deadline:
            return state != "Z" and f"{_MARKER}={marker}".encode() in environ.split(b"\0")
        time.sleep(_EXEC_POLL_SECONDS)


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Wait until `condition()` holds. Raises NotReadyError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotReadyError(f"{what} did not come within {seconds:g} s")
        time.sleep(_POLL_SECONDS)


def _send(pid: int, sent: signal.Signals) -> None:
    try:
        os.kill(pid, sent)
    except ProcessLookupError:
        return
