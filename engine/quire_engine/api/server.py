"""The API process, put together: core, routes, signals, and an end that loses nothing."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from quire_engine.api.app import build_app
from quire_engine.api.client import CoreClient, CoreEnd
from quire_engine.api.core_process import CoreProcess
from quire_engine.api.drain import LAST_BYTES_SECONDS, Drain
from quire_engine.api.errors import GenerationFailed
from quire_engine.api.front import Front
from quire_engine.api.handlers import Handlers
from quire_engine.api.http_protocol import BoundedHttpProtocol
from quire_engine.api.metrics import Metrics
from quire_engine.api.probes import Probes
from quire_engine.errors import EngineError
from quire_engine.machine import process_age_seconds
from quire_engine.settings import ServerSettings

if TYPE_CHECKING:
    from quire_engine.api.served_model import ServedModel
    from quire_engine.api.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = (
    75  # longer than what pools of clients keep idle: they close first, no reset races
)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: SIGTERM begins our drain, not its shutdown."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._answers = asyncio.Event()
        self._age_seconds = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and note when that was."""
        await super().startup(sockets)
        self._age_seconds = process_age_seconds()
        self._answers.set()

    async def startup_seconds(self) -> float:
        """From exec of our process to the first request that could be answered."""
        await self._answers.wait()
        return self._age_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """One server around one core process that is already on its way."""

    def __init__(
        self, settings: ServerSettings, core: CoreProcess, listener: socket.socket
    ) -> None:
        self._settings = settings
        self._core = core
        self._listener = listener
        self._model: ServedModel | None = None
        self.metrics = Metrics(settings.served_model_names[0])
        self.client = CoreClient(
            core,
            self.metrics,
            max_num_queued_reqs=settings.max_num_queued_reqs,
            max_num_queued_tokens=settings.max_num_queued_tokens,
        )
        self.metrics.watch(self.client, len(settings.lora_modules))
        self.drain = Drain(settings.shutdown_timeout)
        self._uvicorn = self._make_uvicorn()

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        port: int = self._listener.getsockname()[1]
        return port

    async def run(self) -> CoreEnd | None:
        """Serve until a signal's drain is over (None), or the core or the model ends it (how)."""
        self.client.listen()
        self._catch_signals()
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._listener]))
        loading = asyncio.create_task(self._load())
        draining = asyncio.create_task(self.drain.run(self.client.fail_all))
        dying = asyncio.create_task(self.client.until_ended())
        try:
            return await self._until_end(loading, draining, dying)
        finally:
            for task in (loading, draining, dying):
                task.cancel()
            await asyncio.gather(loading, draining, dying, return_exceptions=True)
            self._uvicorn.should_exit = True
            await serving
            await self.client.shutdown()

    async def _until_end(
        self,
        loading: "asyncio.Task[None]",
        draining: "asyncio.Task[int]",
        dying: "asyncio.Task[CoreEnd]",
    ) -> CoreEnd | None:
        waiting: set[asyncio.Task[None] | asyncio.Task[int] | asyncio.Task[CoreEnd]]
        waiting = {loading, draining, dying}
        while True:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if dying in done:
                return await self._bury(dying.result())
            if draining in done:
                draining.result()
                return None
            try:
                loading.result()
            except EngineError as error:
                return CoreEnd(error.exit_code, error.reason, str(error))
            waiting.discard(loading)

    async def _bury(self, end: CoreEnd) -> CoreEnd:
        """Tell every open request that its core died, and give the words time to go out."""
        count = self.client.fail_all(
            GenerationFailed(
                "the engine died while it worked on this answer; send the request again",
                code="engine_died",
            )
        )
        logger.error("core died failed=%d message=%s", count, end.message)
        self.drain.signal()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_BYTES_SECONDS):
                await self.drain.until_empty()
        return end

    async def _load(self) -> None:
        """Tokenizer and template beside the core's weights; then put the model together."""
        begun = time.monotonic()
        tokenizer = await asyncio.to_thread(_load_tokenizer, Path(self._settings.model))
        tokenizer_seconds = time.monotonic() - begun
        ready = await self.client.until_ready()
        from quire_engine.api.served_model import ServedModel  # imported in the thread already

        self._model = ServedModel.of(tokenizer, ready)
        phases = {
            "command": self._core.spawned_at_age,
            **ready.startup_seconds,
            "api": await self._uvicorn.startup_seconds(),
            "tokenizer": tokenizer_seconds,
            "total": process_age_seconds(),
        }
        self.metrics.observe_startup(phases)
        told = " ".join(f"{phase}={seconds:.2f}" for phase, seconds in phases.items())
        logger.info(
            "ready port=%d model=%s device=%s kernels=%s max_model_len=%d blocks=%d %s",
            self.port,
            self._settings.served_model_names[0],
            ready.device,
            ready.kernels,
            ready.max_model_len,
            ready.num_blocks,
            told,
        )

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError):  # tests run servers beside others
                loop.add_signal_handler(number, self.drain.signal)

    def _make_uvicorn(self) -> _Uvicorn:
        settings = self._settings
        handlers = Handlers(settings, self.client, lambda: self._model)
        probes = Probes(
            self._core,
            self.client,
            self.drain,
            self.metrics,
            is_loaded=lambda: self._model is not None,
            health_timeout=settings.health_timeout,
            ready_timeout=settings.ready_timeout,
        )
        return _Uvicorn(
            uvicorn.Config(
                Front(build_app(handlers, probes), self.drain, settings.api_keys),
                http=BoundedHttpProtocol.limited(settings.max_header_bytes),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,  # the drain has waited already
            )
        )


def _load_tokenizer(model: Path) -> "Tokenizer":
    """In a thread, imports included: jinja2 and tokenizers take a fifth of a second."""
    import quire_engine.api.served_model  # noqa: F401
    from quire_engine.api.tokenizer import load_tokenizer

    return load_tokenizer(model)
