"""The core as a process of its own, over real sockets, with a tiny model."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import zmq

from quire_engine.messages import (
    AbortRequests,
    AddRequest,
    CoreFailed,
    CoreReady,
    RequestId,
    SamplingParams,
    Shutdown,
)

RECEIVE_MS = 60_000  # a core that imports torch on a busy machine
PHASES = {"imports", "plan", "weights", "kv_cache", "warmup", "verify"}


def request(name, prompt_len=3, max_tokens=4):
    return AddRequest(
        request_id=RequestId(name),
        prompt_token_ids=tuple(range(1, prompt_len + 1)),
        sampling=SamplingParams(temperature=0, max_tokens=max_tokens),
    )


def test_a_core_serves_survives_bad_input_and_signals_and_shuts_down(core, tiny_model):
    running = core(tiny_model("qwen3")).start()
    ready = running.receive()
    assert isinstance(ready, CoreReady)
    assert (ready.vocab_size, ready.max_model_len, ready.device) == (128, 256, "cpu")
    assert set(ready.startup_seconds) == PHASES
    assert ready.num_blocks * ready.block_size * 3 * 2 * 2 * 16 * 4 == ready.kv_cache_bytes
    loaded = running.progress.read()
    assert loaded.pending == 0
    assert loaded.counter > 30  # a bump for each tensor

    running.process.send_signal(signal.SIGTERM)  # the parent's business, not the core's
    running.send(request("good"))
    running.send(request("bad", prompt_len=0))
    outputs, stats = running.receive_until_idle()
    reasons = {o.request_id: o.finish_reason for o in outputs if o.finish_reason}
    assert reasons == {"good": "length", "bad": "error"}
    assert sum(len(o.token_ids) for o in outputs) == 4
    assert stats.num_free_blocks == stats.num_blocks
    assert running.progress.read().counter > loaded.counter + 4 * 3

    running.send(request("gone", max_tokens=200))
    assert running.receive().stats.num_running == 1
    running.send(AbortRequests(request_ids=(RequestId("gone"),)))
    _, stats = running.receive_until_idle()
    assert stats.num_free_blocks == stats.num_blocks

    running.send(Shutdown())
    assert running.process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("breakage", "exit_code", "reason"),
    [
        ("cut", 65, "ModelCorrupt"),
        ("gone", 66, "ModelMissing"),
        ("device", 69, "NoDevice"),
        ("context", 2, "BadConfig"),
    ],
)
def test_what_a_core_cannot_survive_is_said_and_becomes_its_exit_code(
    core, tiny_model, breakage, exit_code, reason
):
    model, fields = tiny_model("llama"), {}
    if breakage == "cut":
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    elif breakage == "gone":
        model = model / "elsewhere"
    elif breakage == "device":
        fields = {"device": "cuda"}
    else:
        fields = {"max_model_len": 10_000}
    running = core(model, **fields).start()
    failed = running.receive()
    assert isinstance(failed, CoreFailed)
    assert (failed.exit_code, failed.reason) == (exit_code, reason)
    assert failed.message
    assert running.process.wait(timeout=30) == exit_code


def test_what_fails_in_an_import_is_told(core, tiny_model, tmp_path, monkeypatch):
    """A library that does not load ends the core in words, not in a traceback alone."""
    (tmp_path / "torch.py").write_text("raise ImportError('libfrob.so is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    running = core(tiny_model("llama")).start()
    failed = running.receive()
    assert isinstance(failed, CoreFailed)
    assert (failed.exit_code, failed.reason) == (70, "Internal")
    assert "ImportError: libfrob.so is not there" in failed.message
    assert running.process.wait(10) == 70


def parent_of(core, *, then):
    """A process that starts `core` and then does that; with a descriptor of the core's."""
    script = textwrap.dedent(f"""
        import os, subprocess, time
        command = {core.command!r} + ["--parent", str(os.getpid())]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        print(child.pid, flush=True)
        {then}
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    return process, os.pidfd_open(int(process.stdout.readline()))


def await_end(parent, descriptor, seconds):
    """Wait for both; the core not longer than `seconds`."""
    parent.wait()
    parent.stdout.close()
    poller = zmq.Poller()
    poller.register(descriptor, zmq.POLLIN)
    begin = time.monotonic()
    assert poller.poll(RECEIVE_MS), "the core outlived its parent"
    assert time.monotonic() - begin < seconds
    os.close(descriptor)


def test_a_core_dies_with_its_parent(core, tiny_model):
    orphan = core(tiny_model("llama"))
    parent, descriptor = parent_of(orphan, then="time.sleep(600)")
    assert isinstance(orphan.receive(), CoreReady)
    parent.kill()
    await_end(parent, descriptor, seconds=10)


def test_a_core_whose_parent_died_before_it_could_look_does_not_start(core, tiny_model):
    """The parent goes before the core asks for PDEATHSIG."""
    orphan = core(tiny_model("llama"))
    parent, descriptor = parent_of(orphan, then="os._exit(0)")
    await_end(parent, descriptor, seconds=RECEIVE_MS / 1000)
    assert not orphan.outputs.poll(0), "it loaded a model for nobody"
