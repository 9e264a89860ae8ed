"""Asks an engine that runs and is not ready for its own word: GET /ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import aiohttp
import msgspec
from msgspec import Struct

from quire_operator import names
from quire_operator.observe import EngineAnswer

TIMEOUT_SECONDS = 1.5
SILENT_SECONDS = 4.0
"""For which silence is remembered: whatever else happens to a service, its silent engines cost no
more than one wait in the 5 s between two looks, each of which asks anew."""


class _Answer(Struct):
    reason: str = ""
    message: str = ""


class EngineSource(Protocol):
    """Where engines' words come from; tests have one without a network."""

    async def ready(self, uid: str, ip: str) -> EngineAnswer: ...


class EngineReader:
    """Asks over HTTP, once, within TIMEOUT_SECONDS. Remembers who was silent, by the pod's uid."""

    def __init__(
        self, session: aiohttp.ClientSession, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._clock = clock
        self._silent: dict[str, tuple[float, EngineAnswer]] = {}

    async def ready(self, uid: str, ip: str) -> EngineAnswer:
        """What the pod's engine says, or how it fails to."""
        now = self._clock()
        self._silent = {u: known for u, known in self._silent.items() if now < known[0]}
        if uid in self._silent:
            return self._silent[uid][1]
        answer = await self._ask(ip)
        if answer.reason == "NoAnswer":
            self._silent[uid] = (self._clock() + SILENT_SECONDS, answer)
        return answer

    async def _ask(self, ip: str) -> EngineAnswer:
        host = f"[{ip}]" if ":" in ip else ip
        url = f"http://{host}:{names.ENGINE_PORT}/ready"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                answer = msgspec.json.decode(await response.read(), type=_Answer)
                status = response.status
        except TimeoutError:
            words = f"/ready gives no answer within {TIMEOUT_SECONDS:g} s"
            return EngineAnswer("NoAnswer", words)
        except (aiohttp.ClientError, OSError) as e:
            return EngineAnswer("Refused", f"/ready cannot be asked: {e or type(e).__name__}")
        except msgspec.MsgspecError:
            return EngineAnswer("Strange", "/ready answers what no engine of ours does")
        return EngineAnswer(answer.reason or f"Status{status}", answer.message)
