"""Asks an engine that runs and is not ready for its own word: GET /ready."""

from __future__ import annotations

from typing import Protocol

import aiohttp
import msgspec
from msgspec import Struct

from quire_operator import names
from quire_operator.observe import EngineAnswer

TIMEOUT_SECONDS = 1.5


class _Answer(Struct):
    reason: str = ""
    message: str = ""


class EngineSource(Protocol):
    """Where engines' words come from; tests have one without a network."""

    async def ready(self, ip: str) -> EngineAnswer: ...


class EngineReader:
    """Asks over HTTP, once, within TIMEOUT_SECONDS."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ready(self, ip: str) -> EngineAnswer:
        """What it says, or how it fails to."""
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
