"""Tokenizers from a folder and from a GGUF; on the real model, equal to transformers'."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quire_engine.api.chat_template import ChatTemplate
from quire_engine.api.protocol import ChatMessage
from quire_engine.api.tokenizer import Tokenizer, load_tokenizer
from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported

MODELS = Path("~/.cache/quire/models").expanduser()
TEXTS = (
    "The capital of France is Paris.",
    "x = 1234.5e-6  # tabs\tand\n\n\nlines   \n",
    "Ünïcödé 日本語 🦊👩‍👩‍👧 naïve",
    "don't DON'T we'll I'd",
    "<|im_start|>user\nhi<|im_end|>\n",
    " leading and trailing ",
    "",
    "a" * 2000,
)


def test_special_tokens_and_ends_are_read(model_dir: Path) -> None:
    special = load_tokenizer(model_dir).special
    assert special.by_name == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert special.eos_token_ids == {2}
    assert special.chat_template is not None


def test_token_bytes_are_exact(model_dir: Path) -> None:
    tokenizer = load_tokenizer(model_dir)
    data = "wörld 日本 🦊".encode()
    ids = tokenizer.encode(data.decode(), add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(index) for index in ids) == data


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_says_so(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match="fetch the model again"):
        load_tokenizer(tmp_path)


def test_a_broken_config_says_so(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(ModelCorrupt, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_templates_are_found_in_their_three_places(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    assert load_tokenizer(tmp_path).special.chat_template is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert load_tokenizer(tmp_path).special.chat_template == "one"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert load_tokenizer(tmp_path).special.chat_template == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert load_tokenizer(tmp_path).special.chat_template == "three"


def test_all_ends_of_generation_config_count(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    assert load_tokenizer(tmp_path).special.eos_token_ids == {1}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert load_tokenizer(tmp_path).special.eos_token_ids == {1, 2}


@pytest.mark.parametrize(
    ("eos_token", "ends"), [("<|im_end|>", {0, 2}), ("<|endoftext|>", {0}), ("<unheard-of>", {0})]
)
def test_the_tokenizers_own_end_counts_too(
    model_dir: Path, tmp_path: Path, eos_token: str, ends: set[int]
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')  # the base model's
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))
    assert load_tokenizer(tmp_path).special.eos_token_ids == ends


def write_gguf(path: Path, *, model: str = "gpt2", pre: str = "smollm", bos: bool = False) -> Path:
    """A GGUF of a vocabulary alone, by the reference implementation."""
    import gguf
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, "ab", "12", "<tool>"]
    types = [3, 3, *[1] * (len(alphabet) + 2), 4]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(bos)
    writer.add_chat_template("{{ bos_token }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str | None]:
    ids = tokenizer.encode(text, add_special_tokens=True)
    return [tokenizer.backend.id_to_token(index) for index in ids]


def test_a_gguf_brings_its_own_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf"))
    assert tokens_of(tokenizer, "ab12</s>") == ["ab", "1", "2", "</s>"]  # smollm: digits apart
    assert tokens_of(tokenizer, "a<tool>") == ["a", "<tool>"]
    assert tokenizer.special.eos_token_ids == {1}
    assert tokenizer.special.by_name["bos_token"] == "<s>"
    assert tokenizer.special.chat_template == "{{ bos_token }}"


def test_a_ggufs_splitting_is_its_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", pre="llama-bpe", bos=True))
    assert tokens_of(tokenizer, "ab12") == ["<s>", "ab", "12"]


@pytest.mark.parametrize(("model", "pre"), [("llama", "smollm"), ("gpt2", "viking")])
def test_an_unknown_gguf_tokenizer_says_what_to_do(tmp_path: Path, model: str, pre: str) -> None:
    with pytest.raises(ModelUnsupported, match=r"put the model's tokenizer\.json beside"):
        load_tokenizer(write_gguf(tmp_path / "m.gguf", model=model, pre=pre))


def test_tokenizer_json_beside_a_gguf_wins(tmp_path: Path, model_dir: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    assert load_tokenizer(file).vocab_size == load_tokenizer(model_dir).vocab_size


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODELS / "SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def from_folder() -> Tokenizer:
    return load_tokenizer(MODELS / "SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def from_gguf() -> Tokenizer:
    (file,) = (MODELS / "SmolLM2-135M-Instruct-GGUF").glob("*.gguf")
    return load_tokenizer(file)


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_the_real_tokenizer_equals_transformers(
    theirs: Any, from_folder: Tokenizer, from_gguf: Tokenizer, text: str
) -> None:
    for ours in (from_folder, from_gguf):
        ids = ours.encode(text, add_special_tokens=True)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
            ids, skip_special_tokens=True
        )


@pytest.mark.model
def test_the_real_chat_equals_transformers(theirs: Any, from_folder: Tokenizer) -> None:
    ours = from_folder
    assert ours.special.chat_template is not None
    template = ChatTemplate(ours.special.chat_template, ours.special.by_name)
    for roles in (["user"], ["system", "user", "assistant", "user"]):
        chat = [{"role": role, "content": f"{role} says: 日本 1 < 2"} for role in roles]
        turns = [msgspec.convert(turn, ChatMessage) for turn in chat]
        text = template.render(turns)
        assert text == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert (
            ours.encode(text, add_special_tokens=False)
            == theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        )
