"""A tokenizer from a GGUF's own metadata (keys tokenizer.ggml.*), for byte-level BPE vocabularies.

GGUF names the splitting of text before BPE by a word (`tokenizer.ggml.pre`); what each word means
is code in llama.cpp (src/llama-vocab.cpp). The ones below are those of the families that the engine
runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from quire_engine.api.tokenizer import SpecialTokens, Tokenizer
from quire_engine.errors import ModelCorrupt, ModelUnsupported
from quire_engine.gguf_header import GgufArray, GgufValue, map_gguf

_CONTROL, _USER_DEFINED = 3, 4  # token types, as ggml numbers them

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class _Splitting:
    """How text is cut before BPE."""

    pattern: str | None = None  # None: GPT-2's own
    digits_apart: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False  # unless tokenizer.ggml.add_bos_token says otherwise

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        byte_level = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=self.pattern is None
        )
        if self.pattern is not None:
            split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
            return pre_tokenizers.Sequence([split, byte_level])
        if self.digits_apart:
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, byte_level])
        return byte_level


SPLITTINGS: Mapping[str, _Splitting] = {
    "default": _Splitting(),
    "gpt-2": _Splitting(),
    "smollm": _Splitting(digits_apart=True),
    "llama-bpe": _Splitting(pattern=_LLAMA3, ignore_merges=True, add_bos=True),
    "qwen2": _Splitting(pattern=_QWEN2, nfc=True),
}


def load_gguf_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer inside `file`. ModelUnsupported for other kinds than byte-level BPE."""
    metadata = map_gguf(file)[0].metadata
    kind = metadata.get("tokenizer.ggml.model")
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    if kind != "gpt2" or pre not in SPLITTINGS:
        raise ModelUnsupported(
            "a GGUF's own tokenizer must be byte-level BPE (model gpt2) split as one of "
            f"{', '.join(SPLITTINGS)}, got model {kind}, pre {pre} in {file}; "
            "put the model's tokenizer.json beside the file"
        )
    try:
        return _build(metadata, SPLITTINGS[pre])
    except (KeyError, IndexError, ValueError) as error:
        raise ModelCorrupt(
            f"a GGUF's tokenizer.ggml.* must be whole, got {file}: {error!r}; fetch the file again"
        ) from error


def _build(metadata: Mapping[str, GgufValue], splitting: _Splitting) -> Tokenizer:
    tokens = _texts(metadata["tokenizer.ggml.tokens"])
    merges = [_pair(merge) for merge in _texts(metadata["tokenizer.ggml.merges"])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.ignore_merges)
    )
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = splitting.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", ())
    assert isinstance(types, GgufArray | tuple)
    for token, token_type in zip(tokens, types, strict=False):
        if token_type == _CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif token_type == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    if isinstance(bos_id, int) and metadata.get("tokenizer.ggml.add_bos_token", splitting.add_bos):
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[bos_id], "$A"], special_tokens=[(tokens[bos_id], bos_id)]
        )
    return Tokenizer(backend, _special_tokens(metadata, tokens))


def _special_tokens(metadata: Mapping[str, GgufValue], tokens: list[str]) -> SpecialTokens:
    def token_id(word: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{word}_token_id")
        return value if isinstance(value, int) else None

    words = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    by_name = {
        f"{name}_token": tokens[index]
        for name, word in words.items()
        if (index := token_id(word)) is not None
    }
    ends = frozenset(
        index for word in ("eos", "eot", "eom") if (index := token_id(word)) is not None
    )
    template = metadata.get("tokenizer.chat_template")
    return SpecialTokens(ends, by_name, template if isinstance(template, str) else None)


def _texts(value: GgufValue) -> list[str]:
    if not isinstance(value, GgufArray):
        raise ValueError("a list of texts was expected")
    return [str(item) for item in value]


def _pair(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ", 1)
    return left, right
