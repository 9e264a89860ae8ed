import gguf
import numpy as np
import pytest

from quire_engine import gguf_header
from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from quire_engine.gguf import GgufFile
from quire_engine.gguf_header import BLOCK_TYPES, read_gguf_header

ROWS, COLUMNS = 6, 512


def random_values(seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def random_blocks(type_name):
    """Random bytes of a type that gguf-py cannot quantize, with tame scales."""
    block = BLOCK_TYPES[type_name]
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (ROWS * COLUMNS // block.values, block.num_bytes), np.uint8)
    scales = rng.normal(size=(len(blocks), 2)).astype(np.float16).view(np.uint8)
    if type_name == "Q4_K":
        blocks[:, :4] = scales
    else:
        blocks[:, 208:] = scales[:, :2]
    return blocks.reshape(ROWS, -1)


@pytest.fixture
def write(tmp_path):
    """Writes a GGUF with tensors {name: (array, type)} and some metadata; returns its path."""

    def write(tensors, **metadata):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in metadata.items():
            writer.add_key_value(key, *value)
        for name, (array, type_name) in tensors.items():
            kind = gguf.GGMLQuantizationType[type_name]
            writer.add_tensor(name, array, raw_dtype=None if array.dtype == np.float32 else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.mark.parametrize("type_name", sorted(BLOCK_TYPES))
def test_each_type_is_dequantized_as_the_reference_does(write, type_name):
    kind = gguf.GGMLQuantizationType[type_name]
    if type_name in ("Q4_K", "Q6_K"):
        stored = random_blocks(type_name)
    else:
        stored = gguf.quants.quantize(random_values(), kind)
    file = GgufFile.open(write({"w": (stored, type_name)}))
    expected = gguf.quants.dequantize(stored, kind).reshape(ROWS, COLUMNS)
    assert file.header.tensors["w"].type_name == type_name
    assert file.header.tensors["w"].shape == (ROWS, COLUMNS)
    np.testing.assert_array_equal(file.read("w"), expected)
    some = file.widen("w", file.raw("w")[[4, 1]])
    np.testing.assert_array_equal(some, expected[[4, 1]])


def test_metadata_of_every_kind_is_read(write):
    types = gguf.GGUFValueType
    path = write(
        {"w": (random_values(), "F32")},
        number=(7, types.UINT32),
        long=(-(2**40), types.INT64),
        real=(0.5, types.FLOAT32),
        yes=(True, types.BOOL),
        text=("grüß", types.STRING),
        tokens=(["a", "b", "ü"], types.ARRAY, types.STRING),
        scores=([0.5, -1.0], types.ARRAY, types.FLOAT32),
    )
    metadata = GgufFile.open(path).header.metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["number"] == 7
    assert metadata["long"] == -(2**40)
    assert metadata["real"] == 0.5
    assert metadata["yes"] is True
    assert metadata["text"] == "grüß"
    assert list(metadata["tokens"]) == ["a", "b", "ü"]
    assert (len(metadata["scores"]), list(metadata["scores"])) == (2, [0.5, -1.0])


def test_several_tensors_stand_where_the_directory_says(write):
    first, second = random_values(1), random_values(2)[:1]
    file = GgufFile.open(write({"first": (first, "F32"), "second": (second, "F32")}))
    np.testing.assert_array_equal(file.read("second"), second)
    np.testing.assert_array_equal(file.read("first"), first)


def test_a_cut_file_is_corrupt_wherever_it_is_cut(write):
    path = write({"w": (random_values(), "F32")}, text=("hello", gguf.GGUFValueType.STRING))
    whole = path.read_bytes()
    for length in (0, 10, 30, 60, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelCorrupt, match="fetch the model again"):
            GgufFile.open(path)


def test_what_is_no_gguf_is_corrupt(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelCorrupt, match="must begin with b'GGUF', got b'PK"):
        GgufFile.open(path)


def test_an_alignment_of_nothing_is_corrupt(write):
    zero = {"general.alignment": (0, gguf.GGUFValueType.UINT32)}
    path = write({"w": (random_values(), "F32")}, **zero)
    with pytest.raises(ModelCorrupt, match="alignment is 0"):
        GgufFile.open(path)


def test_an_old_version_and_an_unknown_type_are_unsupported(write):
    path = write({"w": (random_values(), "F32")})
    whole = bytearray(path.read_bytes())
    whole[4] = 1
    path.write_bytes(whole)
    with pytest.raises(ModelUnsupported, match="version must be 2 or 3, got 1"):
        GgufFile.open(path)
    stored = gguf.quants.quantize(random_values(), gguf.GGMLQuantizationType.Q5_0)
    with pytest.raises(ModelUnsupported, match="got type 6 for w"):
        GgufFile.open(write({"w": (stored, "Q5_0")}))


def test_an_array_of_arrays_and_a_row_of_half_a_block_are_corrupt(write):
    path = write({"w": (random_values(), "F32")}, deep=([1], gguf.GGUFValueType.ARRAY))
    whole = bytearray(path.read_bytes())
    items = whole.index(b"deep") + 4 + 4
    whole[items] = 9  # the items' type
    path.write_bytes(whole)
    with pytest.raises(ModelCorrupt, match="metadata type 9 is none"):
        GgufFile.open(path)
    stored = gguf.quants.quantize(random_values(), gguf.GGMLQuantizationType.Q8_0)
    path = write({"w": (stored, "Q8_0")})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(COLUMNS.to_bytes(8, "little"), (500).to_bytes(8, "little"), 1))
    with pytest.raises(ModelCorrupt, match="w has rows of 500 values, in blocks of 32"):
        GgufFile.open(path)


def test_a_header_that_promises_more_than_any_model_has_is_corrupt():
    counts = (1 << 40).to_bytes(8, "little") * 2
    zeros = b"GGUF" + (3).to_bytes(4, "little") + counts + bytes(1000)
    with pytest.raises(ModelCorrupt, match="1099511627776 tensors"):
        read_gguf_header(lambda start, stop: zeros[start:stop], len(zeros), "m.gguf")


def test_a_vocabulary_is_read_when_it_is_asked_for(write):
    tokens = ["a", "bc", "def"]
    path = write(
        {"w": (random_values(), "F32")},
        tokens=(tokens, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING),
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"def")] = 0xFF  # no UTF-8
    path.write_bytes(content)
    found = GgufFile.open(path).header.metadata["tokens"]
    assert len(found) == 3
    with pytest.raises(UnicodeDecodeError):
        list(found)


def test_of_an_endless_header_a_bounded_part_is_read(monkeypatch):
    """A text of a terabyte: whatever the file's size, its header is not looked for in all of it."""
    monkeypatch.setattr(gguf_header, "FIRST_READ", 64)
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 1000)
    counts = b"".join(number.to_bytes(8, "little") for number in (0, 1, 1 << 40))
    begin = b"GGUF" + (3).to_bytes(4, "little") + counts
    stops = []

    def read(start, stop):
        stops.append(stop)
        return (begin + bytes(stop))[start:stop]

    with pytest.raises(ModelCorrupt, match="does not end within 1,000 bytes"):
        read_gguf_header(read, 1 << 41, "m.gguf")
    assert stops == [64, 128, 256, 512, 1000]


def test_no_file(tmp_path):
    with pytest.raises(ModelMissing):
        GgufFile.open(tmp_path / "model.gguf")
