"""What a safetensors file says of itself: its tensors, and so the size that it must have.

Format: https://huggingface.co/docs/safetensors. No torch: the fetch, the plan and the check before
loading read kilobytes of a file, here or on the hub.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec

from quire_engine.errors import ModelCorrupt

FIRST_READ = 64 * 1024  # holds the headers of most shards
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

ReadRange: TypeAlias = Callable[[int, int], bytes]  # [start, stop) of a file, clipped to its end


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor's entry."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]  # [start, stop), bytes after the header


@dataclass(frozen=True)
class Header:
    """A parsed header."""

    tensors: Mapping[str, TensorEntry]
    num_bytes: int  # before the first tensor

    @property
    def file_bytes(self) -> int:
        """The size of the whole file."""
        stops = (tensor.data_offsets[1] for tensor in self.tensors.values())
        return self.num_bytes + max(stops, default=0)


def read_header(read: ReadRange, file: str) -> Header:
    """The header of `file`, by one read or two. ModelCorrupt where there is no whole one."""
    first = read(0, FIRST_READ)
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise _corrupt(file, "it does not begin with a header")
    text = first[8 : 8 + length]
    if len(text) < length:
        text += read(8 + len(text), 8 + length)
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {
            name: msgspec.json.decode(raw, type=TensorEntry) for name, raw in entries.items()
        }
    except msgspec.MsgspecError as error:
        raise _corrupt(file, f"its header is garbled ({error})") from error
    return Header(tensors, 8 + length)


def whole_file_header(path: Path) -> Header:
    """The header of a file on disk; ModelCorrupt unless the file has the size that it says."""
    header = read_header(partial(_read_range, path), str(path))
    size = path.stat().st_size
    if size != header.file_bytes:
        raise _corrupt(
            str(path), f"its header asks for {header.file_bytes:,} bytes, it has {size:,}"
        )
    return header


def _read_range(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _corrupt(file: str, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"a safetensors file must be whole, got {file}: {what}; fetch the model again"
    )
