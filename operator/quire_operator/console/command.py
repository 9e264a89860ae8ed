"""`kubectl quire status` and `top` as coroutines: connect, read, show."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TextIO

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live

from quire_operator.console import complaints, words
from quire_operator.console.cluster import Options, connected
from quire_operator.console.document import Document
from quire_operator.console.reading import read
from quire_operator.console.rounds import Round, Sampler
from quire_operator.console.screen import screen
from quire_operator.console.table import Order, table
from quire_operator.console.telling import document, is_looked_at
from quire_operator.errors import ConsoleError
from quire_operator.names import Key

PIPED_WIDTH = 120
MAX_WIDTH = 160
"""Columns: longer lines are hard to read."""


def console_on(to: TextIO) -> Console:
    """As wide as the terminal; into a pipe PIPED_WIDTH, unless COLUMNS says otherwise."""
    width = None if to.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=to, width=width, highlight=False, markup=False, emoji=False)


async def status(options: Options, name: str, output: Literal["text", "json"], to: TextIO) -> None:
    """Raises ConsoleError when there is nothing to show."""
    async with connected(options) as cluster:
        key = Key(cluster.namespace, name)
        now = time.time()
        seen = await read(cluster.client, key, now, cluster.place)
    if not is_looked_at(seen):
        raise complaints.no_status(key, words.age(now - seen.service.meta.created))
    found = document(seen)
    if output == "json":
        to.write(as_json(found))
    else:
        show(console_on(to), found)


def as_json(found: Document) -> str:
    """As `-o json` writes it."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


def show(console: Console, found: Document) -> None:
    """The one screen."""
    width = min(console.width, MAX_WIDTH)
    put(console, screen(found, width), width)


def put(console: Console, shown: RenderableType, width: int | None = None) -> None:
    """Prints it; where no terminal looks, without the blanks that fill up lines."""
    if console.is_terminal:
        console.print(shown, width=width)
        return
    with console.capture() as capture:
        console.print(shown, width=width)
    lines = capture.get().splitlines()
    console.file.write("".join(f"{line.rstrip()}\n" for line in lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOptions:
    """How `top` shows; `interval` in seconds."""

    all_namespaces: bool
    interval: float
    once: bool
    order: Order


async def top(options: Options, how: TopOptions, to: TextIO) -> None:
    """Until q, Ctrl-C or the pipe's end; with `once` one sample. Raises ConsoleError when there is
    nothing to show."""
    async with connected(options) as cluster:
        namespace = None if how.all_namespaces else cluster.namespace
        shown = _Top(Sampler(cluster.client, namespace, cluster.place), how, console_on(to))
        if how.once:
            await shown.once()
        elif to.isatty():
            await shown.live()
        else:
            await shown.piped()


class _Top:
    def __init__(self, sampler: Sampler, how: TopOptions, console: Console) -> None:
        self._sampler = sampler
        self._how = how
        self._console = console
        self._last = Round(lines=(), unseen=())

    async def once(self) -> None:
        await self._round()
        await asyncio.sleep(self._how.interval)
        await self._round()
        put(self._console, self._table())

    async def piped(self) -> None:
        """A table each interval: what reads it wants lines, not a screen."""
        while True:
            await self.once()
            self._console.file.write("\n")
            self._console.file.flush()

    async def live(self) -> None:
        """On the terminal's other screen; the last table stays when it is left."""
        # Here, as Windows has no such terminals; all else works there.
        from quire_operator.console.keys import quit_key

        await self._round()
        with (
            quit_key() as asked,
            Live(self._table(), console=self._console, screen=True, auto_refresh=False) as screen,
        ):
            screen.refresh()
            refreshing = asyncio.ensure_future(self._refresh(screen))
            quitting = asyncio.ensure_future(asked.wait())
            try:
                await asyncio.wait((refreshing, quitting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                refreshing.cancel()
                quitting.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing
        self._console.print(self._table())

    async def _refresh(self, screen: Live) -> None:
        while True:
            await asyncio.sleep(self._how.interval)
            try:
                await self._round()
            except ConsoleError as error:  # it may come back: the last numbers stay
                self._last = replace(self._last, unseen=(str(error),))
            screen.update(self._table(), refresh=True)

    async def _round(self) -> None:
        self._last = await self._sampler.round(time.monotonic())

    def _table(self) -> RenderableType:
        return table(self._last, self._how.order, namespaces=self._how.all_namespaces)
