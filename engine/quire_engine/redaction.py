"""What may be written of a text: secrets that were given, and what addresses carry, become ***.

Logs (RedactingFormatter), GET /progress and termination messages all pass through a Redactor.
"""

import html
import json
import logging
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote

MARK = "***"
_USERINFO = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
_QUERY = re.compile(r"(://[^\s?#'\"<>]*)\?[^\s'\"<>]+")
_LINE = 16  # characters: shorter lines of a secret (-----, braces) are nobody's alone
_QUIET = ("httpx2", "httpcore2", "huggingface_hub")


class Redactor:
    """Replaces these secrets in every spelling that a text may have of them, users and passwords
    in addresses, and the queries of addresses, where signatures stand."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
        longest_first = sorted(spellings, key=len, reverse=True)  # one may begin another
        self._known = re.compile("|".join(map(re.escape, longest_first))) if spellings else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(MARK, text)
        return _QUERY.sub(rf"\1?{MARK}", _USERINFO.sub(f"{MARK}@", text))


ADDRESSES_ONLY = Redactor()  # of a command that was given no secrets


class RedactingFormatter(logging.Formatter):
    """A log line with its traceback, those of causes included."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__("%(levelname)s %(name)s %(message)s")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


def configure_logging(redact: Redactor) -> None:
    """One line each on stderr. HTTP clients would log every address with its signature."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(redact))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def secrets_in_address(address: str) -> list[str]:
    """The password of https://user:password@host, or the user that stands alone there, and both
    together. What lies before the last @ counts, however wrong the address is."""
    known, at, _ = address.partition("://")[2 if "://" in address else 0].rpartition("@")
    if not at:
        return []
    user, _, password = known.partition(":")
    return [text for text in (password or user, known) if text]


def _spellings(secret: str) -> set[str]:
    """As it is, by lines, and as addresses, Python, JSON and XML write it."""
    lines = [line.strip() for line in secret.splitlines()]
    plain = {secret, unquote(secret), *(line for line in lines if len(line) >= _LINE)}
    found = set(plain)
    for text in plain:
        found |= _quoted(text) | {repr(text)[1:-1], ascii(text)[1:-1], html.escape(text)}
        found |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return {spelling for spelling in found if spelling}


def _quoted(text: str) -> set[str]:
    encoded = {quote(text, safe=""), quote(text), quote_plus(text)}
    return encoded | {re.sub(r"%..", lambda match: match[0].lower(), text) for text in encoded}
