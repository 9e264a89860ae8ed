"""Running other programs, and reading their failures."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire_cluster.errors import CommandError

_TAIL_LINES = 25


def run(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program to its end and return its stdout.

    `environment` is laid over this process's own. Raises CommandError with the last lines of what
    the program wrote when it ends with another code than 0 or cannot be found.
    """
    try:
        done = subprocess.run(
            list(command),
            input=stdin,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandError(f"{command[0]} was not found on PATH; install it") from error
    if done.returncode != 0:
        raise CommandError(_failure(command, done.returncode, done.stderr or done.stdout))
    return done.stdout


def succeeds(command: Sequence[str]) -> bool:
    """Whether a program exists and ends with 0; its output is dropped."""
    try:
        run(command)
    except CommandError:
        return False
    return True


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a program whose output is long: it goes to `log`, whose tail a failure quotes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as sink:
        try:
            code = subprocess.run(
                list(command),
                env={**os.environ, **(environment or {})},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        except FileNotFoundError as error:
            raise CommandError(f"{command[0]} was not found on PATH; install it") from error
    if code != 0:
        raise CommandError(_failure(command, code, log.read_text(errors="replace"), log))


def _failure(command: Sequence[str], code: int, output: str, log: Path | None = None) -> str:
    tail = "\n".join(output.strip().splitlines()[-_TAIL_LINES:])
    where = f" (all of it in {log})" if log else ""
    return f"`{' '.join(command[:6])}` ended with code {code}{where}:\n{tail}"
