"""Hashing a model beside its loading: a flipped byte on the volume is found before it is served.

Sizes and headers cannot see a flipped byte, only a hash of everything can. Hashing runs in threads
(hashlib lets go of the interpreter), one a file, and reads the pages that the loader reads anyway:
a cold disk is read once and not twice. Cost in README.md.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from quire_engine.config import VerifyMode
from quire_engine.errors import ModelCorrupt
from quire_engine.fetch.manifest import (
    Manifest,
    ManifestFile,
    check_model,
    find_manifest,
    verify_file,
)


class Verification:
    """Hashes on their way. `wait` before the model answers anybody; leaving a `with` block ends
    those that still run, so that a start that fails does not wait for gigabytes.
    """

    def __init__(self, files: Sequence[tuple[Path, ManifestFile]], threads: int) -> None:
        self._stopped = threading.Event()
        self._moved = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
        self._hashes = [
            self._pool.submit(verify_file, path, entry, self._on_chunk) for path, entry in files
        ]
        for future in self._hashes:
            future.add_done_callback(lambda _: self._moved.set())

    def __enter__(self) -> "Verification":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    @property
    def done(self) -> bool:
        return all(future.done() for future in self._hashes)

    def wait(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Block until every file is hashed. Raises ModelCorrupt for the first bad one.

        `on_progress` is called here, in the caller's thread, while bytes move: the core's pulse has
        one writer.
        """
        with self:
            for future in self._hashes:
                while not future.done():
                    self._moved.wait()
                    self._moved.clear()
                    on_progress()
                future.result()

    def cancel(self) -> None:
        """End all hashing within a chunk."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _on_chunk(self) -> None:
        if self._stopped.is_set():
            raise CancelledError
        self._moved.set()


def check_whole(model: Path, mode: VerifyMode) -> Manifest | None:
    """The manifest, if there is one and sizes and headers are as it says. ModelCorrupt."""
    manifest = check_model(model)
    if manifest is None and mode == "always":
        raise ModelCorrupt(
            f"--verify-weights always needs a manifest, got none beside {model}; fetch the "
            "model with `quire-engine fetch`, or use auto"
        )
    return manifest


def start_verification(model: Path, mode: VerifyMode = "auto", threads: int = 2) -> Verification:
    """Check sizes and headers now (ModelCorrupt), and start hashing in the background.

    auto: hash all of a model that has a manifest, nothing of one that has none. always: a model
    without a manifest is ModelCorrupt. never: sizes and headers only.
    """
    manifest = check_whole(model, mode)
    found = find_manifest(model)
    if manifest is None or found is None or mode == "never":
        return Verification((), threads)
    folder, _ = found
    large_first = sorted(manifest.files, key=lambda entry: -entry.size)
    return Verification([(folder / entry.path, entry) for entry in large_first], threads)
