"""The mirror's repositories once more, as object stores and as plain files.

    GET /s3/BUCKET?list-type=2&prefix=P&delimiter=/      S3, signatures checked (path style)
    GET /gs/BUCKET?list-type=2&prefix=P&delimiter=/      Google's XML API, self-signed tokens
    GET /az/CONTAINER?comp=list&prefix=P&delimiter=/     Azure Blob Storage, signed by SAS
    GET /{s3,gs,az}/BUCKET/KEY                           with Range and If-Match
    GET /web/PATH                                        a web server's folder, with Range

A bucket is an organisation, and a key NAME/PATH a file of its repository NAME as `main` stands now:
where a test moves that branch, objects are replaced.
"""

import base64
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

from aiohttp import web

from quire_cluster.hub_repos import HubFile

if TYPE_CHECKING:
    from quire_cluster.hub import Mirror

_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_TIME = "2026-01-01T00:00:00.000Z"
_MARKER = HubFile("", Path(os.devnull), 0, hashlib.sha256().hexdigest(), "")


class StoreError(Exception):
    """An answer other than 200, in the words of object stores."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code

    def response(self) -> web.Response:
        body = f"<Error><Code>{self.code}</Code><Message>a message</Message></Error>"
        return web.Response(status=self.status, text=body, content_type="application/xml")


@dataclass(frozen=True)
class _Object:
    key: str
    file: HubFile

    @property
    def etag(self) -> str:
        """As S3's: 32 hex digits that say nothing about the content to who does not know how it
        was uploaded."""
        return self.file.sha256[:32]


class ObjectRoutes:
    """What a mirror answers as an object store."""

    def __init__(self, mirror: "Mirror") -> None:
        self._mirror = mirror

    def add_to(self, application: web.Application) -> None:
        add = application.router.add_route
        add("GET", "/{store:s3|gs|az}/{bucket}", self._list)
        add("GET", "/{store:s3|gs|az}/{bucket}/{key:.+}", self._get)
        add("GET", "/web/{bucket}/{key:.+}", self._web)

    # ---- routes ---------------------------------------------------------------------------------

    async def _list(self, request: web.Request) -> web.StreamResponse:
        mirror, store = self._mirror, request.match_info["store"]
        try:
            self._check(request)
            bucket = self._bucket(request)
            if mirror.strikes(bucket, listing=True):
                response = await mirror.listing_fault()
            else:
                response = self._listing(request, store, bucket)
        except StoreError as error:
            response = error.response()
        mirror.record(request, response.status, len((response.text or "").encode()))
        return response

    def _listing(self, request: web.Request, store: str, bucket: str) -> web.Response:
        prefix = request.query.get("prefix", "")
        found = [o for o in self._objects(bucket, prefix) if "/" not in o.key[len(prefix) :]]
        body = (_azure_page if store == "az" else _s3_page)(bucket, found)
        return web.Response(text='<?xml version="1.0"?>' + body, content_type="application/xml")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check(request)
            found = self._find(request)
            asked = request.headers.get("If-Match")
            if asked is not None and asked != f'"{found.etag}"':
                raise StoreError(412, "PreconditionFailed")
        except StoreError as error:
            self._mirror.record(request, error.status, 0)
            return error.response()
        return await self._mirror.send(request, found.file, _headers(found), store=True)

    async def _web(self, request: web.Request) -> web.StreamResponse:
        faults = self._mirror.faults
        if faults.web_authorization not in ("", request.headers.get("Authorization")):
            self._mirror.record(request, 401, 0)
            return web.Response(status=401)
        try:
            found = self._find(request)
        except StoreError as error:
            self._mirror.record(request, error.status, 0)
            return web.Response(status=error.status)
        headers = {k: v for k, v in _headers(found).items() if k not in faults.web_omits}
        return await self._mirror.send(request, found.file, headers, store=True)

    # ---- what is there --------------------------------------------------------------------------

    def _bucket(self, request: web.Request) -> str:
        bucket = unquote(request.match_info["bucket"])
        if not self._mirror.repositories.names(bucket):
            code = (
                "ContainerNotFound" if request.match_info.get("store") == "az" else "NoSuchBucket"
            )
            raise StoreError(404, code)
        return bucket

    def _objects(self, bucket: str, prefix: str) -> list[_Object]:
        return [
            _Object(f"{name}/{file.path}", file)
            for name in self._mirror.repositories.names(bucket)
            if f"{name}/".startswith(prefix[: len(name) + 1])
            for file in self._files(f"{bucket}/{name}")
            if f"{name}/{file.path}".startswith(prefix)
        ]

    def _files(self, repo: str) -> tuple[HubFile, ...]:
        markers = (_MARKER,) if self._mirror.faults.folder_markers else ()
        return (*markers, *self._mirror.commit(repo).files)

    def _find(self, request: web.Request) -> _Object:
        key = unquote(request.match_info["key"])
        found = [o for o in self._objects(self._bucket(request), key) if o.key == key]
        if not found:
            raise StoreError(404, "NoSuchKey")
        return found[0]

    # ---- who may --------------------------------------------------------------------------------

    def _check(self, request: web.Request) -> None:
        store, keys = request.match_info["store"], self._mirror.faults.object_keys
        if not keys:
            return
        if store == "s3":
            _check_aws(request, keys)
        elif store == "gs":
            _check_google(request, keys)
        elif request.query.get("sig") not in keys.values():
            raise StoreError(403, "AuthenticationFailed")


def _headers(found: _Object) -> dict[str, str]:
    return {
        "ETag": f'"{found.etag}"',
        "Last-Modified": _DATE,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }


def _s3_page(bucket: str, found: list[_Object]) -> str:
    contents = "".join(
        f"<Contents><Key>{escape(o.key)}</Key><LastModified>{_TIME}</LastModified>"
        f'<ETag>"{o.etag}"</ETag><Size>{o.file.size}</Size></Contents>'
        for o in found
    )
    return (
        f"<ListBucketResult><Name>{escape(bucket)}</Name><KeyCount>{len(found)}</KeyCount>"
        f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    )


def _azure_page(bucket: str, found: list[_Object]) -> str:
    """Azure lists its ETags without the quotes that it answers them in."""
    blobs = "".join(
        f"<Blob><Name>{escape(o.key)}</Name><Properties><Last-Modified>{_DATE}</Last-Modified>"
        f"<Etag>{o.etag}</Etag><Content-Length>{o.file.size}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        for o in found
    )
    return (
        f'<EnumerationResults ContainerName="{escape(bucket)}"><Blobs>{blobs}</Blobs>'
        "<NextMarker/></EnumerationResults>"
    )


# ---- signatures ---------------------------------------------------------------------------------


def _check_aws(request: web.Request, keys: dict[str, str]) -> None:
    """Signature version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html"""
    given = request.headers.get("Authorization", "")
    if not given.startswith("AWS4-HMAC-SHA256 "):
        raise StoreError(403, "AccessDenied")
    fields = dict(part.split("=", 1) for part in given.split(" ", 1)[1].split(", "))
    key, date, region, service, _ = fields["Credential"].split("/")
    if key not in keys:
        raise StoreError(403, "InvalidAccessKeyId")
    signing = f"AWS4{keys[key]}".encode()
    for word in (date, region, service, "aws4_request"):
        signing = _hmac(signing, word)
    scope = f"{date}/{region}/{service}/aws4_request"
    canonical = hashlib.sha256(_canonical_request(request, fields["SignedHeaders"]).encode())
    text = "\n".join(
        ("AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, canonical.hexdigest())
    )
    if not hmac.compare_digest(_hmac(signing, text).hex(), fields["Signature"]):
        raise StoreError(403, "SignatureDoesNotMatch")


def _canonical_request(request: web.Request, signed: str) -> str:
    pairs = sorted(parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in signed.split(";"))
    payload = request.headers["x-amz-content-sha256"]
    path = request.rel_url.raw_path
    return "\n".join((request.method, path, query, headers, signed, payload))


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _check_google(request: web.Request, accounts: dict[str, str]) -> None:
    """The account that a token says it is of. Whether that one signed it is Google's to check."""
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        raise StoreError(401, "AuthenticationRequired") from None
    if claims.get("iss") not in accounts:
        raise StoreError(401, "AuthenticationRequired")
