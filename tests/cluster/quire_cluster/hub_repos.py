"""Model repositories for the hub mirror: folders seen as commits.

    ROOT/org/name/        the branch `main`
    ROOT/org/name@v1/     the branch or tag `v1`

A commit's id is the hash of its files' names and contents: a folder that changes is a new commit.
Digests of large files are kept under ROOT/.digests/: hashing gigabytes takes longer than a client
of the mirror waits.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pth", ".onnx", ".model")
KEPT_BYTES = 256 * 1024 * 1024  # files from here on are hashed once and for all
LFS_BYTES = 10 * 1024 * 1024  # the hub refuses larger files in plain git


@dataclass(frozen=True)
class HubFile:
    """One file of a commit, with the digests that the hub tells about it."""

    path: str
    location: Path
    size: int
    sha256: str
    blob_id: str  # git's: sha1 of "blob <size>\\0" and the content

    @property
    def is_lfs(self) -> bool:
        return self.path.endswith(LFS_SUFFIXES) or self.size > LFS_BYTES

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    id: str
    files: tuple[HubFile, ...]

    def find(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)


class Repositories:
    """The repositories under a root folder, hashed once a file's size or time changes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._digests: dict[tuple[str, int, int], tuple[str, str]] = {}

    def exists(self, repo: str) -> bool:
        return (self._root / repo).is_dir()

    def names(self, organization: str) -> list[str]:
        """The repositories of an organization."""
        folders = (self._root / organization).glob("*")
        return sorted(p.name for p in folders if p.is_dir() and "@" not in p.name)

    def resolve(self, repo: str, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a commit id names; None for an unknown revision."""
        folders = self._folders(repo)
        if revision in folders:
            return self._commit(folders[revision])
        commits = (self._commit(folder) for folder in folders.values())
        return next((commit for commit in commits if commit.id == revision), None)

    def _folders(self, repo: str) -> dict[str, Path]:
        base = self._root / repo
        marked = {p.name.partition("@")[2]: p for p in base.parent.glob(f"{base.name}@*")}
        return {"main": base, **marked}

    def _commit(self, folder: Path) -> Commit:
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        files = tuple(self._file(folder, path) for path in paths)
        names = "\n".join(f"{file.path} {file.blob_id}" for file in files)
        return Commit(hashlib.sha256(names.encode()).hexdigest()[:40], files)

    def _file(self, folder: Path, path: Path) -> HubFile:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = self._kept_digests(path, status)
        sha256, blob_id = self._digests[key]
        name = path.relative_to(folder).as_posix()
        return HubFile(name, path, status.st_size, sha256, blob_id)

    def _kept_digests(self, path: Path, status: os.stat_result) -> tuple[str, str]:
        if status.st_size < KEPT_BYTES:
            return _digests(path, status.st_size)
        what = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        kept = self._root / ".digests" / hashlib.sha256(what.encode()).hexdigest()[:32]
        if kept.is_file():
            sha256, blob_id = json.loads(kept.read_text())
            return sha256, blob_id
        digests = _digests(path, status.st_size)
        kept.parent.mkdir(exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(digests))
        draft.rename(kept)
        return digests


def _digests(path: Path, size: int) -> tuple[str, str]:
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()
