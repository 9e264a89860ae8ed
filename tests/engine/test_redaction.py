"""No secret that was given is written: in logs and tracebacks, at /progress, as last words."""

import base64
import html
import json
import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.errors import ConfigError
from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.progress import Progress
from quire_engine.fetch.uri import parse_uri
from quire_engine.redaction import ADDRESSES_ONLY, RedactingFormatter, Redactor
from quire_engine.termination import report_fatal

# Long and strange enough to stand in no frame of ours; spaces at the ends are taken off variables.
SECRET = st.text(
    alphabet=st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="*"), min_size=6
).filter(lambda text: text == text.strip() and len(set(text)) > 3)
PLAIN = st.from_regex(r"[A-Za-z0-9_.~-]{8,40}", fullmatch=True)
CARRIERS: list[Callable[[str], str]] = [
    lambda secret: f"it said {secret} twice: {secret}",
    lambda secret: f"got {secret!r}",
    lambda secret: f"got {secret!a}",
    lambda secret: f"GET /x?sig={quote(secret, safe='')} and {quote(secret)}",
    lambda secret: f"form {quote_plus(secret)}",
    lambda secret: json.dumps({"key": secret}),
    lambda secret: f"<Message>{html.escape(secret)}</Message>",
]


def written(text: str, redact: Redactor, log: Path) -> list[str]:
    """All that this process would write where `text` is what went wrong."""
    progress = Progress(redact=redact)
    progress.trouble = SourceUnreachable(text)
    report_fatal("SourceUnreachable", text, redact)
    page = msgspec.json.decode(msgspec.json.encode(progress.report()))
    return [_logged(text, redact), page["note"], json.loads(log.read_text())["message"]]


def _logged(text: str, redact: Redactor) -> str:
    """A log line whose message, exception and that one's cause all hold it."""
    try:
        try:
            raise OSError(text)
        except OSError as cause:
            raise ValueError(f"while {text}") from cause
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("quire", logging.ERROR, "f.py", 1, "broke: %s", (text,), info)
    return RedactingFormatter(redact).format(record)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "termination"


@given(st.lists(SECRET, min_size=1, max_size=3), st.sampled_from(CARRIERS))
def test_no_secret_is_in_any_output(
    log: Path, secrets: list[str], carried: Callable[[str], str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERMINATION_LOG", str(log))
        for secret in secrets:
            for text in written(carried(secret), Redactor(secrets), log):
                assert secret not in text
                assert quote(secret, safe="") not in text
                assert " ".join(secret.split()) not in text


@settings(max_examples=20)
@given(PLAIN, PLAIN)
def test_every_credential_that_a_source_takes_is_a_secret(one: str, other: str) -> None:
    pem = f"-----BEGIN PRIVATE KEY-----\n{one * 8}\n{other * 8}\n-----END PRIVATE KEY-----\n"
    environment = {
        "HF_TOKEN": f"hf_{one}",
        "HF_ENDPOINT": f"https://user:{one}e@hub.example",
        "HTTPS_PROXY": f"http://{other}p@proxy.example:3128",
        "QUIRE_HTTP_USERNAME": "user",
        "QUIRE_HTTP_PASSWORD": f"{other}w",
        "AWS_SECRET_ACCESS_KEY": f"{one}/+=",
        "AWS_ENDPOINT_URL": f"https://minio:{other}m@minio.example",
        "AZURE_STORAGE_SAS_TOKEN": f"sv=2026&sig={quote(one + '+/=', safe='')}",
        "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({"private_key": pem}),
    }
    redact = SourceOptions.from_environment(environment).redact
    basic = base64.b64encode(f"user:{other}w".encode()).decode()
    for text in (
        *(environment[name] for name in environment if "USERNAME" not in name),
        *(f"{one}e", f"{other}p", f"{other}m", f"{one}+/=", basic, one * 8, other * 8),
    ):
        shown = redact(f"before {text!r} after {text}")
        assert text not in shown
        assert one not in shown
        assert shown.startswith("before ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://u:p@h/x failed", "GET https://***@h/x failed"),
        ("https://h/x?X-Amz-Signature=0a&y=1 was cut", "https://h/x?*** was cut"),
        ("('https://h/x?sig=0a', 1)", "('https://h/x?***', 1)"),
        ("what? a user@host: s3://b/a@v1", "what? a user@host: s3://b/a@v1"),
    ],
)
def test_addresses_lose_what_they_should_not_carry(text: str, shown: str) -> None:
    assert ADDRESSES_ONLY(text) == shown


@pytest.mark.parametrize("scheme", ["https", "http", "hf", "s3", "gs", "az", "ftp", ""])
@settings(max_examples=10)
@given(password=PLAIN, signature=PLAIN)
def test_a_uri_that_is_refused_does_not_repeat_them(
    scheme: str, password: str, signature: str
) -> None:
    start = f"{scheme}://" if scheme else ""
    for uri in (
        f"{start}user:{password}!@host/x.bin",
        f"{start}user:{password}!@host/x.bin?sig={signature}!",
        f"{start}user:a/{password}!@host/x.bin?sig={signature}!&to=a@b",
    ):
        with pytest.raises(ConfigError) as refused:
            parse_uri(uri)
        assert f"{password}!" not in str(refused.value)
        assert f"{signature}!" not in str(refused.value)


def test_an_endpoint_that_is_refused_does_not_show_its_password() -> None:
    for endpoint in ("ftp://user:geheim@hub", "user:geheim@hub"):
        with pytest.raises(ConfigError) as refused:
            SourceOptions.from_environment({"HF_ENDPOINT": endpoint})
        assert "geheim" not in str(refused.value)
        assert "hub" in str(refused.value)
