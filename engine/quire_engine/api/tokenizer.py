"""Text to token ids and single tokens back, by Hugging Face's `tokenizers`. No transformers.

Read from tokenizer.json (+ tokenizer_config.json, generation_config.json, config.json) in a model
folder, or beside a .gguf file, or from the .gguf file's own metadata (gguf_tokenizer.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import tokenizers

from quire_engine.errors import ModelCorrupt, ModelMissing

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that end an answer, and those that a chat template may name."""

    eos_token_ids: frozenset[int] = frozenset()
    by_name: Mapping[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>"
    chat_template: str | None = None


class Tokenizer:
    """A model's tokenizer. Encoding lets go of the GIL; callable from any thread."""

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
        self.backend = backend
        self.special = special
        self.byte_level = isinstance(backend.decoder, tokenizers.decoders.ByteLevel)
        """Each token stands for its bytes, whatever comes before it."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this; added tokens counted."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; with the tokens that the model wants around a plain text, if asked
        for.
        """
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of `token_ids`; U+FFFD where they end inside a character."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """One token's text, special ones as they are written; U+FFFD for a piece of a character."""
        return self.backend.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """One token's exact bytes, a piece of a character too where the vocabulary shows it."""
        text = self.token_text(token_id)
        token = self.backend.id_to_token(token_id)
        if REPLACEMENT not in text or token is None:
            return text.encode()
        if self.byte_level:
            return bytes(_BYTE_OF_CHAR[char] for char in token if char in _BYTE_OF_CHAR)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return text.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte (openai/gpt-2, encoder.py: bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    stand_ins.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return stand_ins


_BYTE_OF_CHAR = _byte_level_alphabet()


def load_tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of the model folder or .gguf file `model`.

    Raises ModelMissing when there is none, ModelCorrupt when its files cannot be read.
    """
    folder = model if model.is_dir() else model.parent
    file = folder / "tokenizer.json"
    if file.is_file():
        backend = _read_tokenizer_json(file)
        return Tokenizer(backend, _read_special_tokens(folder, backend))
    if model.is_file() and model.suffix == ".gguf":
        from quire_engine.api.gguf_tokenizer import load_gguf_tokenizer

        return load_gguf_tokenizer(model)
    raise ModelMissing(
        f"a model folder must hold tokenizer.json, got {model} without one; "
        "convert the tokenizer with transformers' save_pretrained, or serve a .gguf file"
    )


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelCorrupt(
            f"tokenizer.json must be a tokenizers file, got {file}: {error}; fetch the model again"
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


class _TokenContent(msgspec.Struct, frozen=True):
    content: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
    """The fields of tokenizer_config.json (or special_tokens_map.json) that serving needs."""

    bos_token: str | _TokenContent | None = None
    eos_token: str | _TokenContent | None = None
    unk_token: str | _TokenContent | None = None
    sep_token: str | _TokenContent | None = None
    pad_token: str | _TokenContent | None = None
    cls_token: str | _TokenContent | None = None
    mask_token: str | _TokenContent | None = None
    chat_template: str | list[dict[str, str]] | None = None


class _ModelConfig(msgspec.Struct, frozen=True):
    """config.json and generation_config.json: the ids that end an answer."""

    eos_token_id: int | list[int] | None = None


def _read_special_tokens(folder: Path, backend: tokenizers.Tokenizer) -> SpecialTokens:
    config = _read_json(folder / "tokenizer_config.json", _TokenizerConfig)
    names = {
        name: value.content if isinstance(value, _TokenContent) else value
        for name in config.__struct_fields__
        if name.endswith("_token") and (value := getattr(config, name)) is not None
    }
    # A fine-tune often ends with another token than its base model, whose config.json it kept.
    own_end = backend.token_to_id(names["eos_token"]) if "eos_token" in names else None
    ends = _read_eos_ids(folder) | (frozenset() if own_end is None else {own_end})
    return SpecialTokens(ends, names, _read_chat_template(folder, config))


def _read_eos_ids(folder: Path) -> frozenset[int]:
    """generation_config.json names every id that ends an answer, config.json often only one."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name, _ModelConfig).eos_token_id
        if value is not None:
            return frozenset([value] if isinstance(value, int) else value)
    return frozenset()


def _read_chat_template(folder: Path, config: _TokenizerConfig) -> str | None:
    """chat_template.jinja wins over tokenizer_config.json, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if isinstance(config.chat_template, list):
        named = {entry.get("name"): entry.get("template") for entry in config.chat_template}
        return named.get("default")
    return config.chat_template


Config = TypeVar("Config", _TokenizerConfig, _ModelConfig)


def _read_json(file: Path, kind: type[Config]) -> Config:
    """The file as a `kind`, other keys left out; an empty one when there is no file."""
    if not file.is_file():
        return kind()
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelCorrupt(
            f"{file.name} must be JSON as transformers writes it, got {file}: {error}; "
            "fetch the model again"
        ) from error
