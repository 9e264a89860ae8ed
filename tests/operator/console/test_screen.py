"""The one screen, at the widths of a small and of a large terminal.

Each story in stories/ is drawn and compared with its golden text beside it. After a wanted change:
QUIRE_WRITE_SCREENS=1, run, look at the diff.
"""

import io
import os
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from quire_operator.console.command import console_on, show
from quire_operator.console.document import Document, Pod

STORIES = sorted((Path(__file__).parent / "stories").glob("*.json"))
WIDTHS = (80, 120)


def story(name: str) -> Document:
    path = Path(__file__).parent / "stories" / f"{name}.json"
    return msgspec.json.decode(path.read_bytes(), type=Document)


def drawn(document: Document, width: int, **how: object) -> str:
    into = io.StringIO()
    console = Console(file=into, width=width, highlight=False, markup=False, **how)  # type: ignore[arg-type]
    show(console, document)
    return into.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_screens_are_as_they_were(path: Path, width: int) -> None:
    golden = path.with_suffix(f".{width}.txt")
    text = drawn(story(path.stem), width)
    if "QUIRE_WRITE_SCREENS" in os.environ:
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_nothing_is_cut_off_and_no_line_is_too_long(path: Path, width: int) -> None:
    text = drawn(story(path.stem), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_a_long_name_is_wrapped_and_not_cut() -> None:
    document = story("rollout")
    name = "a-service-with-a-name-of-forty-letters-x-9f8e7d6c-7d9f4cbbd5-x2x4k"
    pods = [msgspec.structs.replace(pod, name=name, node=None) for pod in document.pods]
    text = drawn(msgspec.structs.replace(document, pods=pods[:1], events=[]), 80)
    assert "…" not in text
    assert name in text.replace("\n", "").replace(" ", "")


def test_no_escape_sequence_of_a_pod_reaches_the_terminal() -> None:
    document = story("rollout")
    evil = "bad \x1b]0;title\x07\x1b[31mred\r\noverwritten [bold]kept[/bold]"
    pod: Pod = msgspec.structs.replace(document.pods[0], trouble=evil)
    condition = msgspec.structs.replace(document.conditions[0], message=evil)
    text = drawn(
        msgspec.structs.replace(
            document, pods=[pod], ready=condition, conditions=[condition, condition]
        ),
        120,
    )
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]kept[/bold]" in text


def test_colours_only_where_a_terminal_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, coloured = (drawn(story("rollout"), 120, **how) for how in ({}, TERMINAL))
    assert "\x1b[" not in plain
    assert "\x1b[" in coloured


def test_the_docs_show_a_screen_as_it_is_drawn() -> None:
    page = (Path(__file__).parents[3] / "operator/docs/console.md").read_text()
    golden = (Path(__file__).parent / "stories/fetching.80.txt").read_text()
    assert f"$ kubectl quire status chat\n{golden}```" in page


def test_the_readme_begins_a_screen_as_it_is_drawn() -> None:
    """stories/unbound.json is what -o json said of a new service on a real API server."""
    page = (Path(__file__).parents[3] / "README.md").read_text()
    golden = (Path(__file__).parent / "stories/unbound.80.txt").read_text()
    upper = golden[: golden.index("\nCONDITION")]
    assert f"$ kubectl quire status chat\n{upper}\n...\n```" in page


TERMINAL = {"force_terminal": True, "color_system": "standard"}


def test_a_pipe_has_a_width_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console_on(io.StringIO()).width == 120
    monkeypatch.setenv("COLUMNS", "80")
    assert console_on(io.StringIO()).width == 80
