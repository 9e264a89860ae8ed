"""A model's volume: what lies where, what is complete, and how new replaces old.

    model/               the model; appears by rename
    manifest.json        written after it; without it nothing is complete
    .staging/blobs/KEY   a verified file, by digest: a branch that moves keeps what did not change
    .staging/blobs/KEY.partial, KEY.parts   a half-fetched one (parts.py)
    .staging/boot        which run of which machine wrote the half-fetched ones
    .staging/next/       model/ and manifest.json about to be installed; with the manifest, ready
    .staging/previous/   the model being replaced

A kill between any two steps leaves either the old model or one that `recover` completes.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from quire_engine.errors import ModelCorrupt
from quire_engine.fetch.errors import NoSpace
from quire_engine.fetch.manifest import (
    MANIFEST,
    MODEL,
    Manifest,
    ManifestFile,
    read_manifest,
    verify_file,
)
from quire_engine.fetch.parts import PartTable, stale_names
from quire_engine.fetch.source import RemoteFile
from quire_engine.safetensors_header import whole_file_header

logger = logging.getLogger(__name__)

METADATA_BYTES = 1024**2  # for manifest, part tables and folders
_READ_BYTES = 1024**2


class Store:
    """The one owner of a volume's layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / MODEL
        self.blobs = root / ".staging" / "blobs"
        self._staging = root / ".staging"
        self._next = root / ".staging" / "next"
        self._previous = root / ".staging" / "previous"

    def try_lock(self) -> int | None:
        """A descriptor that locks the volume while it is open; None while another fetch has it.

        The operator's Lease is the real guard: flock means nothing on some shared file systems.
        This one costs nothing and keeps the pods of two attempts on one node apart.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            logger.warning("this volume has no locks, going on without error=%s", error)
        return descriptor

    # ---- what is there --------------------------------------------------------------------------

    def current(self) -> Manifest | None:
        """The manifest of the complete model, if there is one."""
        try:
            return read_manifest(self.root / MANIFEST)
        except ModelCorrupt as error:
            logger.warning("the manifest is damaged, taking the model for incomplete %s", error)
            return None

    def bad_files(self, manifest: Manifest, *, deep: bool) -> list[str]:
        """Paths that are not as the manifest says: by size and header, or by hash when `deep`."""
        bad = []
        for entry in manifest.files:
            path = self.model / entry.path
            try:
                if deep:
                    verify_file(path, entry)
                elif path.stat().st_size != entry.size:
                    bad.append(entry.path)
                elif entry.path.endswith(".safetensors"):
                    whole_file_header(path)
            except (ModelCorrupt, FileNotFoundError, IsADirectoryError):
                bad.append(entry.path)
        return bad

    # ---- staging --------------------------------------------------------------------------------

    def recover(self) -> None:
        """Complete an installation that was cut short, or forget one that was not ready."""
        if (self._next / MANIFEST).is_file():
            logger.info("completing an interrupted installation")
            self._swap()
        elif self._next.is_dir():
            shutil.rmtree(self._next)
        current = self.current()
        if self._previous.is_dir() and current and not self.bad_files(current, deep=False):
            shutil.rmtree(self._previous)  # killed with the new model in place: space of a model

    def open_staging(self) -> None:
        """Make the staging folder."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        self._forget_unsynced()

    def begin(self, files: Sequence[RemoteFile]) -> None:
        """Open staging for this model: staged files that it does not have go."""
        self.open_staging()
        names = [path.name for path in self.blobs.iterdir()]
        for name in stale_names(names, {file.digest.key for file in files}):
            (self.blobs / name).unlink()

    def forget_reused(self) -> None:
        """Unstage what a run that was killed took from the installed model: it read those files
        then, and as a second name of the same bytes they may have gone bad since."""
        for path in self.blobs.iterdir():
            if path.stat().st_nlink > 1:
                path.unlink()

    def _forget_unsynced(self) -> None:
        """A power cut may lose bytes that a part table vouches for. Where no digest of the content
        would find that, half-fetched files are gone on with only by the machine that wrote them,
        since it last started."""
        mark, boot = self._staging / "boot", _boot_id()
        if mark.is_file() and mark.read_text() == boot:
            return
        for path in self.blobs.glob("version-*.*"):
            path.unlink()
        mark.write_text(boot)

    def drop_staging(self) -> None:
        """Forget all that is staged: without hard links, the space of a model."""
        if self._staging.is_dir():
            shutil.rmtree(self._staging)

    def has_blob(self, file: RemoteFile) -> bool:
        """Whether this file is staged, whole and verified."""
        return (self.blobs / file.digest.key).is_file()

    def reuse(self, file: RemoteFile) -> bool:
        """Stage this file from the installed model, if it is there with the right content."""
        if not self._is_installed(file):
            return False
        _link(self.model / file.path, self.blobs / file.digest.key)
        return True

    def _is_installed(self, file: RemoteFile) -> bool:
        """Whether the installed model has this very file, with the right content."""
        installed = self.model / file.path
        try:
            if file.digest.of_content:
                return installed.stat().st_size == file.size and has_digest(installed, file)
            entry = self._entry(file)
            if entry is None:
                return False
            verify_file(installed, entry)
        except (ModelCorrupt, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        return True

    def _entry(self, file: RemoteFile) -> ManifestFile | None:
        """The manifest's entry that was made of this version of this file."""
        current = self.current()
        made = (file.path, file.digest.value)
        entries = current.files if current is not None else ()
        return next((entry for entry in entries if (entry.path, entry.version) == made), None)

    def read(self, file: RemoteFile) -> bytes | None:
        """This file's content, staged or installed; None where neither is the right one."""
        staged = self.blobs / file.digest.key
        if staged.is_file() and has_digest(staged, file):
            return staged.read_bytes()
        return (self.model / file.path).read_bytes() if self._is_installed(file) else None

    def bytes_staged(self, file: RemoteFile) -> int:
        """Bytes of this file that need no download any more."""
        if self.has_blob(file):
            return file.size
        try:
            data = (self.blobs / f"{file.digest.key}.parts").read_bytes()
        except FileNotFoundError:
            return 0
        table = PartTable.decode(data, file.size)
        return table.bytes_done if table is not None else 0

    def require_space(self, num_bytes: int, uri: str) -> None:
        """NoSpace unless the volume has so many bytes free."""
        status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        if free >= num_bytes + METADATA_BYTES:
            return
        total = status.f_blocks * status.f_frsize
        raise NoSpace(
            f"{uri} needs {megabytes(num_bytes)} more on its volume, got {megabytes(free)} free "
            f"of {megabytes(total)}; raise cache.size or free space on the claim"
        )

    # ---- installing -----------------------------------------------------------------------------

    def stage_model(self, files: Sequence[RemoteFile]) -> Path:
        """Lay the staged files out as the model's folder, not yet installed; returns it."""
        folder = self._next / MODEL
        for file in files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(self.blobs / file.digest.key, target)
            target.chmod(0o644)  # the pods that serve run as another user
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            path.chmod(0o755)
            _sync(path)
        return folder

    def install(self, manifest: Manifest) -> None:
        """Put what `stage_model` laid out in the installed model's place."""
        write_durably(self._next / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        self._swap()

    def _swap(self) -> None:
        staged = self._next / MODEL
        if staged.is_dir():
            if self.model.exists():
                shutil.rmtree(self._previous, ignore_errors=True)
                self.model.rename(self._previous)
            staged.rename(self.model)
            _sync(self.root)
        (self._next / MANIFEST).rename(self.root / MANIFEST)
        _sync(self.root)
        self.drop_staging()


def manifest_files(folder: Path, files: Sequence[RemoteFile]) -> tuple[ManifestFile, ...]:
    """Manifest entries of verified files; their sha256 is computed where the source told none."""
    return tuple(_manifest_file(folder / file.path, file) for file in files)


def has_digest(path: Path, file: RemoteFile) -> bool:
    """Whether the content at `path` is that of `file`; its size alone where no digest is known."""
    if not file.digest.of_content:
        return path.stat().st_size == file.size
    hasher = file.digest.hasher(file.size)
    with path.open("rb", buffering=0) as source:
        while chunk := source.read(_READ_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest() == file.digest.value


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole file that is there after a power cut, or not at all."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    draft.rename(path)
    _sync(path.parent)


def megabytes(num_bytes: int) -> str:
    """For people: 269.1 MB, 16.1 GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _manifest_file(path: Path, file: RemoteFile) -> ManifestFile:
    version = "" if file.digest.of_content else file.digest.value
    return ManifestFile(file.path, file.size, _sha256(path, file), version)


def _boot_id() -> str:
    """One for each start of this machine; a new one each time where it tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except FileNotFoundError:
        return uuid.uuid4().hex


def _sha256(path: Path, file: RemoteFile) -> str:
    if file.digest.algorithm == "sha256":
        return file.digest.value
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _link(source: Path, target: Path) -> None:
    """The same content under a second name; copied where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
