"""Liveness: GET /healthz is 200 while the process does its work, else 500 with the reason.

Not kopf's own: an exception in one of its probes hangs the request.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

Check = Callable[[], str | None]
"""Says what is wrong, or None."""


async def serve(checks: tuple[Check, ...], port: int, host: str | None = None) -> web.AppRunner:
    """Serves until the runner's `cleanup()`. Raises OSError when the port is taken."""

    async def answer(_request: web.Request) -> web.Response:
        wrong = [text for check in checks if (text := check()) is not None]
        return web.Response(status=500 if wrong else 200, text="; ".join(wrong) or "ok")

    app = web.Application()
    app.router.add_get("/healthz", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
