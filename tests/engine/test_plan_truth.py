"""The memory plan against a real core process that is given all that it may be given.

Used: RssAnon of the process (proc_pid_status(5)) above what it was when its imports were done, as
packed weights, rotary table, KV cache and activations all are anonymous memory, while the files
that the weights were read from are mapped and let go of.
"""

import contextlib
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_engine.config import EngineConfig, LoraModule
from quire_engine.fetch.options import PlanOptions
from quire_engine.fetch.plan_command import find, plan_of
from quire_engine.messages import AddRequest, CoreReady, RequestId, SamplingParams, Shutdown

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

TOLERANCE = 0.03
NUM_SEQS = 32
PROMPT, ANSWER = 14, 2  # a block each
BUDGET = NUM_SEQS * PROMPT
SHAPE = {
    "max_num_seqs": NUM_SEQS, "max_num_batched_tokens": BUDGET, "max_model_len": BUDGET + 1,
    "num_gpu_blocks_override": NUM_SEQS,
}  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """A way to keep the weights: the engine's flags, and the format of the checkpoint."""

    flags: dict[str, str]
    stored: torch.dtype = torch.bfloat16
    value_bytes: float = 2.0  # that a weight takes, to know that the case is what it says
    num_adapters: int = 0


PRECISIONS = {
    "bf16": Precision({}),
    "fp32": Precision({}, torch.float32, 4.0),
    "int8": Precision({"quantization": "int8"}, value_bytes=1 + 2 / 64),
    "adapters": Precision({}, num_adapters=3),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The real model, its weights stored in a format."""
    from quire_cluster.model import prepare_model

    original = prepare_model().safetensors
    folder = tmp_path_factory.mktemp("fp32")

    def checkpoint(dtype: torch.dtype) -> Path:
        if dtype is torch.bfloat16:
            return original
        if not (folder / "model.safetensors").exists():
            shutil.copy(original / "config.json", folder)
            weights = load_file(original / "model.safetensors")
            # digits that bfloat16 has not: else the kernels keep the narrow format
            save_file({n: w.float() * 1.0001 for n, w in weights.items()},
                      folder / "model.safetensors")  # fmt: skip
        return folder

    yield checkpoint
    shutil.rmtree(folder)


class Memory:
    """Anonymous memory of a process above a baseline, now and at its highest."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._baseline = 0
        self._baseline = self.used()
        self.peak = 0
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def used(self) -> int:
        fields = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) * 1024 - self._baseline

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        with contextlib.suppress(OSError, KeyError):  # the process has ended
            while not self._ended.wait(0.003):
                self.peak = max(self.peak, self.used())


def request(number: int, prompt_len: int, max_tokens: int, adapter: str) -> AddRequest:
    first = 1000 * number  # no prefix is shared
    return AddRequest(
        request_id=RequestId(str(number)),
        prompt_token_ids=tuple((first + 7 * n) % 49_000 for n in range(prompt_len)),
        sampling=SamplingParams(
            temperature=1.0, top_p=0.9, max_tokens=max_tokens, num_logprobs=2, min_tokens=max_tokens
        ),
        adapter=adapter,
    )


@pytest.mark.parametrize("name", PRECISIONS)
def test_used_is_what_was_planned(core, checkpoint, make_adapter, name):
    precision = PRECISIONS[name]
    model = checkpoint(precision.stored)
    adapters = tuple(
        LoraModule(f"a{number}", str(make_adapter(model, f"a{number}", rank=16)))
        for number in range(precision.num_adapters)
    )
    flags = {**SHAPE, **precision.flags, "lora_modules": adapters}
    config = EngineConfig(model=str(model), device="cpu", **flags)
    found = find(PlanOptions(model=str(model), engine=config))
    plan = plan_of(found.facts, config, None, found.adapters)
    running = core(model, num_threads=2, kv_cache_memory_bytes=None, **flags).start()
    while running.progress.read().pending == 0:  # it imports
        time.sleep(0.0005)
    memory = Memory(running.process.pid)
    ready = running.receive()
    assert isinstance(ready, CoreReady)
    assert (ready.num_blocks, ready.weight_bytes) == (plan.num_blocks, plan.weight_bytes)
    assert ready.weight_bytes == pytest.approx(plan.parameters * precision.value_bytes, rel=0.01)
    loaded = plan.weight_bytes + plan.adapter_bytes + plan.table_bytes
    assert memory.used() == pytest.approx(loaded, rel=TOLERANCE)

    names = [module.name for module in adapters] or [""]
    running.send(request(0, BUDGET, 1, names[0]))  # one step of the whole budget; meanwhile
    for number in range(1, NUM_SEQS + 1):
        running.send(request(number, PROMPT, ANSWER, names[number % len(names)]))
    fewest_free, most_running, num_ended = plan.num_blocks, 0, 0
    while num_ended <= NUM_SEQS:
        message = running.receive()
        fewest_free = min(fewest_free, message.stats.num_free_blocks)
        most_running = max(most_running, message.stats.num_running)
        num_ended += sum(output.finish_reason == "length" for output in message.outputs)
    assert (fewest_free, most_running) == (0, NUM_SEQS), "not all of it was put to use"
    planned = plan.fixed_bytes - plan.runtime_bytes + plan.num_blocks * plan.block_bytes
    used, peak = memory.used(), memory.peak
    memory.close()
    running.send(Shutdown())
    assert running.process.wait(timeout=30) == 0
    assert used == pytest.approx(planned, rel=TOLERANCE)
    assert used <= peak <= planned * (1 + TOLERANCE)
