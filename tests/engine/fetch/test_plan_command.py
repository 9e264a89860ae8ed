"""`quire-engine plan` as a Job's container runs it: exit code, stdout, termination message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire_cluster.hub import Faults, running_mirror
from quire_cluster.tiny_models import TinyModel, write_tiny_model
from quire_engine import cli
from quire_engine.gpu_types import GPU_TYPES

ORGANIZATION = "org"
Plan = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plan:
    """Runs the command line; gives the exit code and the termination message."""
    log = tmp_path / "termination-log"
    monkeypatch.setenv("TERMINATION_LOG", str(log))

    def plan(*arguments: str) -> tuple[int, dict[str, Any]]:
        log.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as ended:
            cli.main(["plan", *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code, json.loads(log.read_bytes())

    return plan


def test_a_source_is_planned_at_its_commit(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path / "hub/org/tiny")
    with running_mirror(tmp_path / "hub") as mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        code, message = plan("hf://org/tiny", "--memory", "2Gi", "--", "--device", "cpu")
    assert code == 0
    assert message["bytesTotal"] == sum(path.stat().st_size for path in folder.iterdir())
    assert len(message["commit"]) == 40
    assert set(message) == {"commit", "bytesTotal", "plan"}
    assert set(message["plan"]) == {
        "weightBytes", "kvBytesPerToken", "maxModelLen", "requiredBytes", "kvBlocks",
        "maxConcurrency",
    }  # fmt: skip
    assert message["plan"]["maxModelLen"] == TinyModel().max_model_len


def test_a_refusal_says_all_that_a_plan_says(plan: Plan, tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    code, message = plan(model, "--memory", "100Mi", "--", "--device", "cpu")
    assert code == 2
    assert message["reason"] == "DoesNotFit"
    assert "the memory limit is 100.0 MiB" in message["message"]
    assert (message["commit"], message["bytesTotal"]) == ("", 0)
    assert message["plan"]["requiredBytes"] > 100 << 20


def test_without_memory_nothing_is_refused(plan: Plan, tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    code, message = plan(model, "--", "--device", "cuda")
    assert code == 0
    assert not {"kvBlocks", "maxConcurrency"} & set(message["plan"])


@pytest.mark.parametrize(
    ("flags", "reason", "words"),
    [
        ("--device cpu --max-model-len 999999", "BadConfig", "max_model_len must be <= 512"),
        ("--device cpu --frob", "BadConfig", "No such option: --frob; see quire-engine serve"),
        ("--max-num-seqs 0", "BadConfig", "max_num_seqs must be >= 1"),
        ("--port 99999", "BadConfig", "port must be in 0..65535"),
        ("--device cuda --quantization int8", "BadConfig", "int8 must run on a CPU, got device cu"),
        ("--quantization int5", "BadConfig", "'int5' is not"),
        ("--device cuda --tensor-parallel-size 2", "BadConfig", "tensor_parallel_size must be 1"),
    ],
)
def test_flags_are_those_of_serve(
    plan: Plan, tmp_path: Path, flags: str, reason: str, words: str
) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    code, message = plan(model, "--", *flags.split())
    assert (code, message["reason"]) == (2, reason)
    assert words in message["message"]


def test_every_flag_that_a_pod_gets_is_taken(plan: Plan, tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    flags = (
        "--served-model-name chat --host 0.0.0.0 --port 8000 --device cpu --shutdown-timeout 120 "
        "--dtype auto --max-model-len 256 --max-num-seqs 4 --max-num-batched-tokens 64 "
        "--gpu-memory-utilization 0.8 --tensor-parallel-size 1 --no-enable-prefix-caching"
    )
    code, message = plan(model, "--memory", "1Gi", "--", *flags.split())
    assert code == 0
    assert message["plan"]["maxModelLen"] == 256
    _, larger = plan(model, "--memory", "1Gi", "--", *flags.split(), "--block-size", "32")
    assert message["plan"]["kvBlocks"] == pytest.approx(2 * larger["plan"]["kvBlocks"], abs=1)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults(hidden=("org/tiny",)), "SourceNotFound"),
        (Faults(gated=("org/tiny",)), "SourceUnauthorized"),
        (Faults(tokens={"org/tiny": "geheim"}), "SourceNotFound"),  # the hub tells strangers so
        (Faults(status=500, listing=True), "SourceUnreachable"),
        (Faults(status=500), "SourceUnreachable"),
        (Faults(extra_siblings=("../../etc/passwd",)), "Corrupt"),
    ],
)
def test_a_source_fails_as_it_fails_a_fetch(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults, reason: str
) -> None:
    monkeypatch.setattr("quire_engine.fetch.remote.PATIENCE_SECONDS", 0.5)
    write_tiny_model(tmp_path / "hub/org/tiny")
    with running_mirror(tmp_path / "hub") as mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        mirror.faults(faults)
        code, message = plan("hf://org/tiny", "--", "--device", "cpu")
    assert (code, message["reason"]) == (10, reason)


def test_a_source_of_another_family_is_unsupported(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "hub/org/tiny", TinyModel(architecture="FrobForCausalLM"))
    with running_mirror(tmp_path / "hub") as mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        code, message = plan("hf://org/tiny", "--", "--device", "cpu")
    assert (code, message["reason"]) == (10, "UnsupportedModel")


def test_a_path_fails_as_it_fails_serve(plan: Plan, tmp_path: Path) -> None:
    code, message = plan(str(tmp_path / "nowhere"), "--", "--device", "cpu")
    assert (code, message["reason"]) == (66, "ModelMissing")
    model = str(write_tiny_model(tmp_path / "m"))
    code, message = plan(model, "--", "--device", "cpu", "--verify-weights", "always")
    assert (code, message["reason"]) == (65, "ModelCorrupt")


def test_dummy_weights_are_planned_by_the_config_alone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path / "hub/org/tiny")
    flags = ("--", "--device", "cpu", "--load-format", "dummy")
    with running_mirror(tmp_path / "hub") as mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        code, remote = plan("hf://org/tiny", *flags)
        assert [entry.path for entry in mirror.downloads(".safetensors")] == []
    (folder / "model.safetensors").unlink()
    assert (code, remote["plan"]) == (0, plan(str(folder), *flags)[1]["plan"])
    assert plan(str(folder), "--", "--device", "cpu")[0] == 66


def test_the_table_and_the_json_say_the_same(
    plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    arguments = (model, "--memory", "1Gi", "--", "--device", "cpu")
    _, message = plan(*arguments)
    table = capfd.readouterr().out
    plan(*arguments[:-3], "--json", *arguments[-3:])
    full = json.loads(capfd.readouterr().out)
    assert full["plan"].items() >= message["plan"].items()
    assert full["plan"]["fits"] is True
    assert f"KV cache blocks         {message['plan']['kvBlocks']:,} of 16 tokens" in table


def full_plan(plan: Plan, capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    plan(*arguments[:1], "--json", *arguments[1:])
    found: dict[str, Any] = json.loads(capfd.readouterr().out)["plan"]
    return found


def test_a_gpu_may_be_named(plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    named = full_plan(plan, capfd, model, "--gpu", "nvidia-h100-80gb-hbm3")
    assert (named["gpu"], named["device"], named["fits"]) == ("H100 80GB", "cuda", True)
    by_bytes = full_plan(
        plan, capfd, model, "--memory", str(named["memoryBytes"]), "--", "--device", "cuda"
    )
    assert by_bytes == {**named, "gpu": None}
    plan(model, "--gpu", "L4")
    assert "GPU                     L4 24GB\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--gpu A100", "got 'A100'; take A100 40GB or A100 80GB"),
        ("--gpu L4 --memory 24Gi", "has a memory of its own, got L4 24GB and memory 25769803776"),
        ("--gpu L4 -- --device cpu", "got L4 24GB and device cpu; leave out --device or --gpu"),
        ("--price-per-hour 2", "make a cost together, got 2.0 and None; give both, or neither"),
        ("--tokens-per-second 2", "make a cost together, got None and 2.0"),
        ("--tokens-per-second 0 --price-per-hour 1", "tokens-per-second must be > 0, got 0.0"),
        ("--tokens-per-second 1 --price-per-hour -1", "price-per-hour must be > 0, got -1.0"),
        ("--tokens-per-second 1 --price-per-hour nan", "price-per-hour must be > 0, got nan"),
    ],
)
def test_what_cannot_be_planned_for_is_refused(
    plan: Plan, tmp_path: Path, flags: str, words: str
) -> None:
    code, message = plan(str(write_tiny_model(tmp_path / "m")), *flags.split())
    assert (code, message["reason"]) == (2, "BadConfig")
    assert words in message["message"]


def test_the_gpus_that_fit_are_told(
    plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With what each would hold, as a plan for it alone says."""
    model = str(write_tiny_model(tmp_path / "m"))
    flags = ("--kv-cache-memory-bytes", str(30 << 30))
    found = full_plan(plan, capfd, model, "--", *flags)["gpuTypes"]
    assert [gpu["name"] for gpu in found] == [gpu.name for gpu in GPU_TYPES]
    fits = {gpu["name"]: gpu["fits"] for gpu in found}
    assert (fits["L4 24GB"], fits["L40S 48GB"]) == (False, True)
    alone = full_plan(plan, capfd, model, "--gpu", "L40S", "--", *flags)
    told = next(gpu for gpu in found if gpu["name"] == "L40S 48GB")
    for key in ("memoryBytes", "maxModelLen", "maxConcurrency"):
        assert told[key] == alone[key]
    plan(model, "--", *flags)
    table = capfd.readouterr().out
    assert "GPUs that fit           A40 48GB" in table
    assert "L4 24GB" not in table


def test_flags_that_no_gpu_serves_fit_none(
    plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    flags = ("--", "--device", "cpu", "--quantization", "int8")
    assert full_plan(plan, capfd, model, *flags)["gpuTypes"] == []
    plan(model, *flags)
    assert "GPUs that fit           none of " in capfd.readouterr().out


def test_a_price_and_a_throughput_make_a_cost(
    plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    price = ("--price-per-hour", "3.60", "--tokens-per-second", "2000")
    assert full_plan(plan, capfd, model, *price)["costPerMillionTokens"] == pytest.approx(0.5)
    assert full_plan(plan, capfd, model)["costPerMillionTokens"] is None
    plan(model, *price)
    wanted = "cost                    0.5 per million tokens (3.6 an hour at 2,000 tokens/s)\n"
    assert wanted in capfd.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_counts_for_the_device_that_is_named(
    plan: Plan, tmp_path: Path, device: str
) -> None:
    _, message = plan(str(write_tiny_model(tmp_path / "m")), "--", "--device", device)
    values = 2 * 2 * 2 * 64  # layers, keys and values, heads, head_dim
    assert message["plan"]["kvBytesPerToken"] == values * {"cpu": 4, "cuda": 2}[device]
