import hashlib
import json
import tarfile
from pathlib import Path

from quire_cluster import oci


def test_an_archive_holds_what_its_index_names(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    out = tmp_path / "image.tar"
    oci.pack(out, "quire.test/x:v1", {"x": program}, ["/x"])
    with tarfile.open(out) as archive:
        blobs = {
            name: file.read()
            for name in archive.getnames()
            if (file := archive.extractfile(name)) is not None
        }
    [entry] = json.loads(blobs["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "quire.test/x:v1"
    manifest = json.loads(_blob(blobs, entry["digest"]))
    config = json.loads(_blob(blobs, manifest["config"]["digest"]))
    assert config["config"]["Entrypoint"] == ["/x"]
    layer = _blob(blobs, manifest["layers"][0]["digest"])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    for name in ("one.tar", "two.tar"):
        oci.pack(tmp_path / name, "quire.test/x:v1", {"x": program}, ["/x"])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_an_image_says_its_user(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    oci.pack(tmp_path / "x.tar", "quire.test/x:v1", {"x": program}, ["/x"], user="65532:65532")
    assert b'"User": "65532:65532"' in (tmp_path / "x.tar").read_bytes()


def _blob(blobs: dict[str, bytes], digest: str) -> bytes:
    content = blobs[f"blobs/{digest.replace(':', '/')}"]
    assert hashlib.sha256(content).hexdigest() == digest.partition(":")[2]
    return content
