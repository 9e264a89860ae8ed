"""Asks a running fetch for its progress: every 5 s while its bytes move, at each look before."""

from __future__ import annotations

from typing import Protocol

import aiohttp
import msgspec
from msgspec import Struct

from quire_operator import names
from quire_operator.observe import Progress

TIMEOUT_SECONDS = 1.5
FRESH_SECONDS = 5.0


class _Answer(Struct, rename="camel"):
    phase: str = ""
    bytes_total: int | None = None
    bytes_done: int | None = None
    bytes_per_second: float | None = None
    eta_seconds: float | None = None
    commit: str | None = None
    note: str = ""
    reason: str = ""


def parse_progress(page: bytes) -> Progress | None:
    """A fetch's answer to GET /progress; None for what is none."""
    try:
        answer = msgspec.json.decode(page, type=_Answer)
    except msgspec.MsgspecError:
        return None
    return Progress(
        phase=answer.phase,
        bytes_total=answer.bytes_total,
        bytes_done=answer.bytes_done or 0,
        bytes_per_second=answer.bytes_per_second or 0.0,
        eta_seconds=answer.eta_seconds,
        commit=answer.commit,
        note=answer.note,
        reason=answer.reason,
    )


class ProgressSource(Protocol):
    """Where progress comes from; tests have one without a network."""

    async def read(self, uid: str, ip: str, now: float) -> Progress | None: ...


class ProgressReader:
    """Remembers the last answer of each fetch pod for as long as it is fresh. By uid: an address is
    another pod's soon after its own went, and a silent one would be told the other's bytes."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._known: dict[str, tuple[float, Progress]] = {}

    async def read(self, uid: str, ip: str, now: float) -> Progress | None:
        """None while the pod's fetch does not answer (yet)."""
        known = self._known.get(uid)
        if known is not None and known[1].moves and now - known[0] < FRESH_SECONDS:
            return known[1]
        self._forget(now)
        progress = await self._ask(ip)
        if progress is None:
            # It exits between two questions: its last word is better than none.
            return known[1] if known is not None else None
        self._known[uid] = (now, progress)
        return progress

    def _forget(self, now: float) -> None:
        stale = [uid for uid, (at, _) in self._known.items() if now - at > 10 * FRESH_SECONDS]
        for uid in stale:
            del self._known[uid]

    async def _ask(self, ip: str) -> Progress | None:
        host = f"[{ip}]" if ":" in ip else ip
        url = f"http://{host}:{names.PROGRESS_PORT}/progress"
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            async with self._session.get(url, timeout=timeout) as response:
                return parse_progress(await response.read()) if response.status == 200 else None
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None
