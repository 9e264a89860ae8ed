"""What a fetch holds in memory does not grow with the model."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from quire_cluster.hub import RunningMirror, running_mirror
from quire_cluster.sparse_models import ORGANIZATION, SMALL, prepare

BOUND_BYTES = 96 * 1024**2  # measured: 61 MiB, of 2 GB as of 270 MB; from a bucket 70 MiB
NAME = "small"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[RunningMirror]:
    prepare(tmp_path / "hub", NAME, SMALL, num_shards=1)
    with running_mirror(tmp_path / "hub") as mirror:
        yield mirror


def peak_bytes(volume: Path, mirror: RunningMirror, scheme: str = "hf", **options: bool) -> int:
    """Runs one fetch in a process of its own; the most memory that it held, with the code that it
    maps. (getrusage would tell of the process that began it, too.)"""
    code = f"""if True:
        from pathlib import Path
        from quire_engine.fetch import FetchOptions, SourceOptions, run_fetch

        storage = {{"AWS_ENDPOINT_URL": {mirror.url + "/s3"!r}}}
        source = SourceOptions(endpoint={mirror.url!r}, storage=storage)
        options = FetchOptions(
            uri="{scheme}://{ORGANIZATION}/{NAME}", directory=Path({str(volume)!r}), source=source,
            **{options!r}
        )
        assert run_fetch(options) == 0
        print(Path("/proc/self/status").read_text())
    """
    status = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    [peak] = [line.split()[1] for line in status.decode().splitlines() if "VmHWM" in line]
    return int(peak) * 1024


def test_fetching_and_repairing_hold_little(tmp_path: Path, mirror: RunningMirror) -> None:
    volume = tmp_path / "volume"
    shard = volume / "model" / "model-00001-of-00001.safetensors"
    assert peak_bytes(volume, mirror) < BOUND_BYTES
    assert shard.stat().st_size > 2 * BOUND_BYTES
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(b"?")
    mirror.clear_log()
    assert peak_bytes(volume, mirror, repair=True) < BOUND_BYTES
    assert sum(entry.bytes for entry in mirror.downloads()) == shard.stat().st_size


def test_object_stores_hold_little_too(
    tmp_path: Path, mirror: RunningMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "roots.pem"
    trustme.CA().cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))  # obstore wants roots, even for plain HTTP
    peak = peak_bytes(tmp_path / "volume", mirror, "s3")
    assert peak < BOUND_BYTES
