import threading
from pathlib import Path

import pytest

from quire_cluster.locks import exclusive


def test_the_second_waits_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with exclusive(tmp_path / "lock", "waiting"):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive(tmp_path / "lock", "never said"):
        thread.start()
        entered.wait(timeout=5)
        order.append("first")
    thread.join(timeout=5)
    assert order == ["first", "second"]
    assert "never said" not in capsys.readouterr().err
