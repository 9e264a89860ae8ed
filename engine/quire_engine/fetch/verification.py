"""Hashing a model beside its loading: a flipped byte on the volume is found before it is served.

Sizes and headers cannot see a flipped byte, only a hash of everything can. Hashing runs in threads
(hashlib lets go of the interpreter), one a file, and reads the pages that the loader reads anyway:
a cold disk is read once and not twice. Cost in README.md.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from quire_engine.config import VerifyMode
from quire_engine.errors import ModelCorrupt
from quire_engine.fetch.manifest import check_model, find_manifest, verify_file


class Verification:
    """Hashes on their way. `wait` before the model answers anybody."""

    def __init__(self, pool: ThreadPoolExecutor | None, hashes: Sequence[Future[None]]) -> None:
        self._pool, self._hashes = pool, hashes

    @property
    def done(self) -> bool:
        return all(future.done() for future in self._hashes)

    def wait(self, on_file: Callable[[], None] = lambda: None) -> None:
        """Block until every file is hashed. Raises ModelCorrupt for the first bad one."""
        try:
            for future in self._hashes:
                future.result()
                on_file()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)


def start_verification(model: Path, mode: VerifyMode = "auto", threads: int = 2) -> Verification:
    """Check sizes and headers now (ModelCorrupt), and start hashing in the background.

    auto: hash all of a model that has a manifest, nothing of one that has none. always: a model
    without a manifest is ModelCorrupt. never: sizes and headers only.
    """
    manifest = check_model(model)
    found = find_manifest(model)
    if manifest is None or found is None:
        if mode == "always":
            raise ModelCorrupt(
                f"--verify-weights always needs a manifest, got none beside {model}; fetch the "
                "model with `quire-engine fetch`, or use auto"
            )
        return Verification(None, ())
    if mode == "never":
        return Verification(None, ())
    folder, _ = found
    pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
    large_first = sorted(manifest.files, key=lambda entry: -entry.size)
    hashes = [pool.submit(verify_file, folder / entry.path, entry) for entry in large_first]
    return Verification(pool, hashes)
