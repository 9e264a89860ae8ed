"""A small mirror of a model hub, with faults that tests switch on.

    python -m quire_cluster.hub --host 127.0.0.1 --port 8090 --root ~/.cache/quire/hub

It answers the routes that huggingface_hub uses, headers and error codes included:

    GET       /api/models/ORG/NAME[/revision/REV][?blobs=true]
    GET       /api/models/ORG/NAME/tree/REV
    GET HEAD  /ORG/NAME/resolve/REV/PATH          with Range

the same files as object stores and a web server (hub_objects.py), and, for tests,
PUT /_control/faults (a `Faults` as JSON; it replaces the one before), GET and
DELETE /_control/log (one entry a request, the control routes left out).
"""

import argparse
import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from quire_cluster.hub_answers import (
    file_headers,
    flipped,
    limit_send_buffer,
    requested_range,
    sibling,
    tree_entry,
    until,
)
from quire_cluster.hub_objects import ObjectRoutes
from quire_cluster.hub_repos import Commit, HubFile, Repositories

_Body: TypeAlias = Callable[[web.Request, str, Commit], object]

CHUNK = 128 * 1024
INVALID_CREDENTIALS = "Invalid credentials in Authorization header"


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong, until the next PUT. The default is a healthy hub."""

    hidden: tuple[str, ...] = ()
    """Repositories (org/name) that are not there."""
    tokens: dict[str, str] = {}
    """Private repositories, and the token that opens each."""
    gated: tuple[str, ...] = ()
    """Repositories that list their files but give none away (403 GatedRepo)."""
    main: dict[str, str] = {}
    """Where the branch main of a repository has moved: org/name -> one of its other revisions."""
    extra_siblings: tuple[str, ...] = ()
    """Names added to every listing, as a hostile hub might."""
    object_keys: dict[str, str] = {}
    """Who may use the object stores, and their secrets: access keys (S3), accounts (Google; the
    secret is not looked at), any name and its signature (Azure). Empty: everybody may."""
    folder_markers: bool = False
    """Object stores hold an empty object NAME/ for each folder, as their consoles make it."""
    web_authorization: str = ""
    """Authorization header that /web/ demands; empty: none."""
    web_omits: tuple[str, ...] = ()
    """Headers that /web/ leaves out of its answers."""
    redirect: bool = False
    """Answer a file of LFS with a redirect to a signed address, as the hub does."""
    redirect_to: str = ""
    """Address that such a redirect leads to; empty: this one."""
    bytes_per_second: int | None = None
    """Rate of all connections together."""

    path: str = ""
    """The faults below strike requests for files whose path ends so."""
    times: int | None = None
    """How many requests they strike; None: all."""
    status: int | None = None
    """Answer this status instead."""
    retry_after: float | None = None
    """Retry-After header of that answer, in seconds."""
    cut_after_bytes: int | None = None
    """Close the connection after that many bytes of a body."""
    stall_after_bytes: int | None = None
    """Send nothing more after that many bytes of a body, and keep the connection."""
    flip_byte_at: int | None = None
    """The byte at this offset of the file has one bit flipped."""
    ignores_range: bool = False
    """Answer with the whole file (200), whatever range was asked for."""
    length_delta: int = 0
    """Answer as if the file were that many bytes longer than the listing says."""
    listing: bool = False
    """`status` strikes the listings instead of files; without one they are never answered."""


class LogEntry(msgspec.Struct, frozen=True):
    """One answered request. `start` and `end` (inclusive) are what was asked for of the file."""

    time: float
    method: str
    path: str
    status: int
    bytes: int  # of the body, handed to the socket
    start: int | None = None
    end: int | None = None
    authorized: bool = False  # whether a token came with it


class HubError(Exception):
    """An answer other than 200, in the hub's words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def response(self) -> web.Response:
        headers = {"X-Error-Message": self.message}
        if self.code:
            headers["X-Error-Code"] = self.code
        return web.json_response({"error": self.message}, status=self.status, headers=headers)


class Mirror:
    """The state behind the routes: repositories, the faults of the moment, the log."""

    def __init__(self, root: Path) -> None:
        self.faults = Faults()
        self.log: list[LogEntry] = []
        self.repositories = Repositories(root)
        self._struck = 0
        self._changed = asyncio.Event()
        self._sendable_at = 0.0
        self.num_sending = 0

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._begin])
        add = application.router.add_route
        add("GET", "/api/models/{org}/{name}", self._info)
        add("GET", "/api/models/{org}/{name}/revision/{revision:[^/]+}", self._info)
        add("GET", "/api/models/{org}/{name}/tree/{revision}", self._tree)
        add("GET", "/{org}/{name}/resolve/{revision}/{path:.+}", self._resolve)
        add("HEAD", "/{org}/{name}/resolve/{revision}/{path:.+}", self._resolve)
        add("GET", "/_signed/{org}/{name}/{revision}/{path:.+}", self._signed)
        add("HEAD", "/_signed/{org}/{name}/{revision}/{path:.+}", self._signed)
        ObjectRoutes(self).add_to(application)
        add("PUT", "/_control/faults", self._put_faults)
        add("GET", "/_control/log", self._get_log)
        add("DELETE", "/_control/log", self._delete_log)
        application.on_shutdown.append(self._release)
        return application

    @web.middleware
    async def _begin(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """One that began before the log was cleared is not in the new one, whenever it ends."""
        request["log"] = self.log
        return await handler(request)

    async def _release(self, _: web.Application) -> None:
        self._changed.set()

    # ---- control --------------------------------------------------------------------------------

    def set_faults(self, faults: Faults) -> None:
        self.faults = faults
        self._struck = 0
        self._changed.set()
        self._changed = asyncio.Event()

    async def _put_faults(self, request: web.Request) -> web.Response:
        try:
            self.set_faults(msgspec.json.decode(await request.read(), type=Faults))
        except msgspec.MsgspecError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({})

    async def _get_log(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.log), content_type="application/json")

    async def _delete_log(self, _: web.Request) -> web.Response:
        self.log = []
        return web.json_response({})

    def record(
        self, request: web.Request, status: int, size: int, span: range | None = None
    ) -> None:
        start, end = (span.start, span.stop - 1) if span is not None else (None, None)
        authorized = "Authorization" in request.headers
        request["log"].append(
            LogEntry(
                time.time(), request.method, request.path, status, size, start, end, authorized
            )
        )

    # ---- who may see what -----------------------------------------------------------------------

    def _open(self, request: web.Request) -> tuple[str, Commit]:
        repo = f"{request.match_info['org']}/{request.match_info['name']}"
        demanded = self.faults.tokens.get(repo)
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if demanded and given and given != demanded:
            raise HubError(401, "", INVALID_CREDENTIALS)
        missing = repo in self.faults.hidden or not self.repositories.exists(repo)
        if missing or (demanded and not given):
            # The hub tells a stranger nothing about what he may not see, not even that it is there.
            raise HubError(404 if given else 401, "RepoNotFound", "Repository not found")
        revision = request.match_info.get("revision", "main")
        return repo, self.commit(repo, revision)

    def commit(self, repo: str, revision: str = "main") -> Commit:
        """What a revision of a repository that is there has now."""
        if revision == "main":
            revision = self.faults.main.get(repo, revision)
        commit = self.repositories.resolve(repo, revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def strikes(self, path: str, *, listing: bool) -> bool:
        faults = self.faults
        if listing != faults.listing or not path.endswith(faults.path):
            return False
        if faults.times is not None and self._struck >= faults.times:
            return False
        self._struck += 1
        return True

    def status_fault(self) -> web.Response:
        faults = self.faults
        headers = {} if faults.retry_after is None else {"Retry-After": f"{faults.retry_after:g}"}
        return web.json_response({"error": "a fault"}, status=faults.status or 500, headers=headers)

    async def listing_fault(self) -> web.Response:
        """As `status` says; without one nobody is answered before the next faults."""
        if self.faults.status is None:
            await self._changed.wait()
        return self.status_fault()

    # ---- listings -------------------------------------------------------------------------------

    async def _info(self, request: web.Request) -> web.Response:
        return await self._listing(request, self._info_body)

    async def _tree(self, request: web.Request) -> web.Response:
        def body(_: web.Request, __: str, commit: Commit) -> object:
            return [tree_entry(file) for file in commit.files]

        return await self._listing(request, body)

    async def _listing(self, request: web.Request, body: _Body) -> web.Response:
        try:
            repo, commit = self._open(request)
            if self.strikes(repo, listing=True):
                response = await self.listing_fault()
            else:
                response = web.json_response(body(request, repo, commit))
        except HubError as error:
            response = error.response()
        self.record(request, response.status, len((response.text or "").encode()))
        return response

    def _info_body(self, request: web.Request, repo: str, commit: Commit) -> dict[str, object]:
        blobs = request.query.get("blobs", "").lower() == "true"
        siblings = [sibling(file, blobs=blobs) for file in commit.files]
        siblings += [
            {"rfilename": name, "size": 3, "blobId": "0" * 40}
            for name in self.faults.extra_siblings
        ]
        return {
            "_id": commit.id[:24],
            "id": repo,
            "modelId": repo,
            "sha": commit.id,
            "private": repo in self.faults.tokens,
            "gated": "manual" if repo in self.faults.gated else False,
            "tags": [],
            "siblings": siblings,
        }

    # ---- files ----------------------------------------------------------------------------------

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        try:
            repo, commit = self._open(request)
            if repo in self.faults.gated:
                raise HubError(403, "GatedRepo", f"Access to model {repo} is restricted")
            file = self._find(request, commit)
        except HubError as error:
            self.record(request, error.status, 0)
            return error.response()
        if self.faults.redirect and file.is_lfs:
            signed = f"/_signed/{repo}/{commit.id}/{file.path}?signature=secret"
            headers = file_headers(file, commit) | {"Location": self.faults.redirect_to + signed}
            self.record(request, 302, 0)
            return web.Response(status=302, headers=headers)
        return await self.send(request, file, file_headers(file, commit))

    async def _signed(self, request: web.Request) -> web.StreamResponse:
        try:
            repo = f"{request.match_info['org']}/{request.match_info['name']}"
            commit = self.repositories.resolve(repo, request.match_info["revision"])
            if commit is None:
                raise HubError(404, "RevisionNotFound", "Invalid rev id")
            file = self._find(request, commit)
            return await self.send(request, file, file_headers(file, commit))
        except HubError as error:
            self.record(request, error.status, 0)
            return error.response()

    @staticmethod
    def _find(request: web.Request, commit: Commit) -> HubFile:
        file = commit.find(request.match_info["path"])
        if file is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        return file

    async def send(
        self, request: web.Request, file: HubFile, headers: dict[str, str], *, store: bool = False
    ) -> web.StreamResponse:
        """The file, or the range of it that is asked for, with the faults of the moment. A store
        calls a range of all bytes a range too (206), the hub does not (200)."""
        faulty = request.method == "GET" and self.strikes(file.path, listing=False)
        if faulty and self.faults.status is not None:
            self.record(request, self.faults.status, 0)
            return self.status_fault()
        size = file.size + (self.faults.length_delta if faulty else 0)
        ranged = not (faulty and self.faults.ignores_range)
        span = requested_range(request, size) if ranged else range(size)
        if span is None:
            self.record(request, 416, 0)
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        headers = {**headers, "Content-Length": str(len(span))}
        whole = not ranged or not (store and "Range" in request.headers)
        status = 200 if len(span) == size and whole else 206
        if status == 206:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            self.record(request, response.status, 0)
            return response
        await self._send_body(request, response, file, span, faulty=faulty)
        return response

    async def _send_body(
        self,
        request: web.Request,
        response: web.StreamResponse,
        file: HubFile,
        span: range,
        *,
        faulty: bool,
    ) -> None:
        faults = self.faults if faulty else Faults()
        limit_send_buffer(request)
        sent = 0
        self.num_sending += 1
        try:
            with file.location.open("rb") as source:
                source.seek(span.start)
                while sent < len(span):
                    want = min(CHUNK, len(span) - sent)
                    want = until(faults.cut_after_bytes, sent, want)
                    want = until(faults.stall_after_bytes, sent, want)
                    if want == 0:
                        await self._break(request, faults)
                        return
                    chunk = source.read(want) or bytes(want)
                    chunk = flipped(chunk, span.start + sent, faults.flip_byte_at)
                    await self._pace(len(chunk))
                    await response.write(chunk)
                    sent += len(chunk)
        except ConnectionError:  # the client went away: nothing to tell it
            pass
        finally:
            self.num_sending -= 1
            self.record(request, response.status, sent, span)

    async def _break(self, request: web.Request, faults: Faults) -> None:
        if faults.stall_after_bytes is not None:
            await self._changed.wait()
        if request.transport is not None:
            request.transport.close()

    async def _pace(self, size: int) -> None:
        """Wait for this many bytes' turn on the line that all connections share."""
        rate = self.faults.bytes_per_second
        if rate is None:
            return
        now = time.monotonic()
        self._sendable_at = max(self._sendable_at, now) + size / rate
        await asyncio.sleep(self._sendable_at - now)


class RunningMirror:
    """A mirror in a thread of its own, for tests in the same process."""

    def __init__(self, mirror: Mirror, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self._mirror, self._loop = mirror, loop

    def faults(self, faults: Faults | None = None) -> None:
        """Set these faults, and only these; none without an argument."""
        done = threading.Event()

        def apply() -> None:
            self._mirror.set_faults(faults or Faults())
            done.set()

        self._loop.call_soon_threadsafe(apply)
        done.wait()

    @property
    def log(self) -> tuple[LogEntry, ...]:
        return tuple(self._mirror.log)

    def clear_log(self) -> None:
        self._mirror.log = []

    @property
    def num_sending(self) -> int:
        """Bodies on their way. Requests are in the log once theirs has ended, well or ill."""
        return self._mirror.num_sending

    def downloads(self, suffix: str = "") -> tuple[LogEntry, ...]:
        """The answered requests for contents of files whose path ends so."""
        return tuple(
            entry
            for entry in self.log
            if entry.method == "GET" and entry.start is not None and entry.path.endswith(suffix)
        )


@contextlib.contextmanager
def running_mirror(
    root: Path, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[RunningMirror]:
    """Serve `root` on a free port until the block ends, with `tls` over TLS."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="hub-mirror")
    thread.start()
    try:
        start = asyncio.run_coroutine_threadsafe(_start(root, host, 0, tls), loop)
        mirror, runner, port = start.result()
        try:
            scheme = "http" if tls is None else "https"
            yield RunningMirror(mirror, f"{scheme}://{host}:{port}", loop)
        finally:
            asyncio.run_coroutine_threadsafe(_stop(runner), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(
    root: Path, host: str, port: int, tls: ssl.SSLContext | None = None
) -> tuple[Mirror, web.AppRunner, int]:
    mirror = Mirror(root)
    runner = web.AppRunner(mirror.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=tls).start()
    return mirror, runner, runner.addresses[0][1]


async def _stop(runner: web.AppRunner) -> None:
    """End all connections; those over TLS would wait for their clients' goodbye."""
    handlers = runner.server.connections if runner.server is not None else []
    transports = [handler.transport for handler in handlers]
    await runner.cleanup()
    for transport in transports:
        if transport is not None:
            transport.abort()
    await asyncio.sleep(0.05)  # until the loop has closed their sockets


async def _serve(root: Path, host: str, port: int) -> None:
    _, _, bound = await _start(root, host, port)
    print(f"hub: serving {root} on http://{host}:{bound}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="quire_cluster.hub", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0 takes a free one")
    parser.add_argument("--root", type=Path, default=Path.home() / ".cache" / "quire" / "hub")
    options = parser.parse_args()
    if not options.root.is_dir():
        parser.error(f"--root must be a folder of org/name folders, got {options.root}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.root, options.host, options.port))


if __name__ == "__main__":
    main()
