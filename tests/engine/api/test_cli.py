"""Flags in, configs out; mistakes end with one line and code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quire_engine import cli, serve
from quire_engine.config import EngineConfig, LoraModule
from quire_engine.errors import ConfigError, ModelMissing
from quire_engine.settings import ServerSettings, termination_log
from quire_engine.termination import MAX_BYTES, report_fatal


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code if isinstance(ended.value.code, int) else 1


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServerSettings, EngineConfig]]:
    """What `serve` would have been started with."""
    calls: list[tuple[ServerSettings, EngineConfig]] = []

    def record(settings: ServerSettings, config: EngineConfig) -> None:
        calls.append((settings, config))

    monkeypatch.setattr(serve, "serve", record)
    return calls


def test_flags_are_vllms(served: list[tuple[ServerSettings, EngineConfig]]) -> None:
    flags = (
        "--dtype bfloat16 --max-model-len 2048 --max-num-seqs 8 --max-num-batched-tokens 256 "
        "--gpu-memory-utilization 0.5 --tensor-parallel-size 1 --served-model-name chat "
        "--host 127.0.0.1 --port 9000 --api-key k1 --api-key k2 --device cpu --block-size 32 "
        "--num-gpu-blocks-override 99 "
        "--no-enable-prefix-caching --kv-cache-memory-bytes 1000000 --shutdown-timeout 5 --seed 3 "
        "--max-num-queued-reqs 7 --max-num-queued-tokens 900 --max-decode-slowdown 3 "
        "--load-format dummy"
    )
    assert run("serve", "/models/m", *flags.split()) == 0
    ((settings, config),) = served
    assert config == EngineConfig(
        model="/models/m", dtype="bfloat16", max_model_len=2048, max_num_seqs=8,
        max_num_batched_tokens=256, gpu_memory_utilization=0.5, device="cpu", block_size=32,
        num_gpu_blocks_override=99, enable_prefix_caching=False, kv_cache_memory_bytes=1000000,
        seed=3, load_format="dummy", max_decode_slowdown=3,
    )  # fmt: skip
    assert settings == ServerSettings(
        model="/models/m", served_model_names=("chat",), host="127.0.0.1", port=9000,
        api_keys=("k1", "k2"), shutdown_timeout=5, max_num_queued_reqs=7,
        max_num_queued_tokens=900,
    )  # fmt: skip


def test_flags_default_to_the_configs_own(
    served: list[tuple[ServerSettings, EngineConfig]],
) -> None:
    assert run("serve", "/models/tiny.gguf") == 0
    ((settings, config),) = served
    assert config == EngineConfig(model="/models/tiny.gguf")
    assert settings == ServerSettings(model="/models/tiny.gguf", served_model_names=("tiny",))


@pytest.mark.parametrize(
    "flags",
    [
        "--lora-modules a=/x/a --lora-modules b=/y=z/b",
        "--lora-modules a=/x/a b=/y=z/b",
        "--lora-modules=a=/x/a --lora-modules b=/y=z/b --seed 0",
        '--lora-modules {"name":"a","path":"/x/a","base_model_name":"base"} b=/y=z/b',
    ],
)
def test_lora_modules_are_vllms(
    served: list[tuple[ServerSettings, EngineConfig]], flags: str
) -> None:
    for arguments in (
        ["serve", *flags.split(), "/models/m"],
        ["serve", "/models/m", *flags.split()],
    ):
        served.clear()
        assert run(*arguments) == 0
        ((settings, config),) = served
        modules = (LoraModule("a", "/x/a"), LoraModule("b", "/y=z/b"))
        assert config.lora_modules == settings.lora_modules == modules
        assert settings.model == "/models/m"


def test_a_model_may_look_like_a_module(served: list[tuple[ServerSettings, EngineConfig]]) -> None:
    assert run("serve", "a=b", "--lora-modules", "c=/x") == 0
    ((settings, config),) = served
    assert (settings.model, config.lora_modules) == ("a=b", (LoraModule("c", "/x"),))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("serve m --lora-modules a", "lora_modules must be NAME=PATH, got 'a'"),
        ("serve m --lora-modules a=", "lora_modules must be NAME=PATH, got 'a='"),
        ("serve m --lora-modules a=/x a=/y", "each have a name of its own, got 'a, a'"),
        ('serve m --lora-modules {"name":"a"}', "must be an object of name, path"),
        ("serve m --lora-modules m=/x", "must have names that the model has not, got 'm'"),
        ("serve", "Missing argument 'model'"),
        ("serve m --foo", "No such option: --foo"),
        ("serve m --port x", "'--port': Input should be a valid integer, "),
        ("serve m --port=x", "got 'x'"),
        ("serve m --dtype int3", "'int3' is not one of 'auto', 'float32'"),
        ("serve m --port 99999", "port must be in 0..65535, got 99999"),
        ("serve m --tensor-parallel-size 2", "tensor_parallel_size must be 1"),
        ("serve m --max-num-queued-tokens 0", "max_num_queued_tokens must be >= 1, got 0"),
        ("serve m --max-decode-slowdown 1", "max_decode_slowdown must be > 1, or 0 for no bound"),
        ("serve m --max-num-queued-reqs -1", "max_num_queued_reqs must be >= 0, got -1"),
        ("serve m --served-model-name ", "must not be empty"),
        ("frob", "No such command 'frob'"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    assert run(*arguments.split(" ")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("quire-engine: ")
    assert line in last


def test_a_key_is_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "m", "--api-key", "geheim", "--foo") == 2
    assert run("serve", "m", "--api-key", "geheim", "--port", "x") == 2
    assert "geheim" not in capsys.readouterr().err


def test_known_errors_end_with_their_own_code_and_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(settings: ServerSettings, config: EngineConfig) -> None:
        raise ModelMissing("a model must be there,\ngot none; fetch it")

    monkeypatch.setattr(serve, "serve", fail)
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "end"))
    assert run("serve", "m") == 66
    line = "a model must be there, got none; fetch it"
    assert capsys.readouterr().err == f"quire-engine: {line}\n"
    assert json.loads((tmp_path / "end").read_text()) == {
        "reason": "ModelMissing",
        "message": line,
    }


def test_bugs_end_with_70_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: ServerSettings, config: EngineConfig) -> None:
        raise ZeroDivisionError("one / zero")

    monkeypatch.setattr(serve, "serve", fail)
    assert run("serve", "m") == 70
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1] == "quire-engine: ZeroDivisionError: one / zero"


def test_a_termination_message_fits_where_it_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "end"))
    report_fatal("Internal", "日" * 5000)
    written = (tmp_path / "end").read_bytes()
    assert len(written) <= MAX_BYTES
    assert json.loads(written)["message"].endswith("…")
    assert "日" * 5000 in capsys.readouterr().err


def test_without_a_place_there_is_no_termination_message() -> None:
    assert termination_log({"TERMINATION_LOG": "/x"}) == Path("/x")
    assert termination_log({}) in (None, Path("/dev/termination-log"))


def test_a_port_that_is_taken_is_told() -> None:
    with serve.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            serve.listen("127.0.0.1", port)


def test_help_needs_nothing_heavy() -> None:
    """Neither torch nor a web server is imported to print the flags."""
    code = (
        "import sys; sys.argv = ['quire-engine', 'serve', '--help']\n"
        "from quire_engine.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'starlette', 'uvicorn', 'zmq', 'tokenizers', 'httpx'}\n"
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"--max-model-len" in done.stdout


def test_the_api_process_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, pkgutil, importlib, quire_engine.api as api, quire_engine.serve\n"
        "for module in pkgutil.iter_modules(api.__path__, 'quire_engine.api.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert not {'torch', 'transformers', 'pydantic', 'fastapi'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
