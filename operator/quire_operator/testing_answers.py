"""What pods answer when they are asked, for `testing.Rig`: without a network."""

from __future__ import annotations

from quire_operator.observe import EngineAnswer, Progress


class FakeProgress:
    """What fetches say of themselves, by address."""

    def __init__(self) -> None:
        self.answers: dict[str, Progress] = {}

    async def read(self, uid: str, ip: str, now: float) -> Progress | None:
        return self.answers.get(ip)


class FakeEngines:
    """What engines that run say at /ready, by address; one that is not told of is loading."""

    def __init__(self) -> None:
        self.answers: dict[str, EngineAnswer] = {}

    async def ready(self, uid: str, ip: str) -> EngineAnswer:
        return self.answers.get(ip, EngineAnswer("Loading"))
