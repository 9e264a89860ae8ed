"""The memory plan against a real core process that is given all that it may be given, and against
one that loads a matrix as large as all the rest.

Used: RssAnon of the process (proc_pid_status(5)) above what it was when its imports were done, as
packed weights, rotary table, KV cache and activations all are anonymous memory, while the files
that the weights were read from are mapped and let go of.
"""

import contextlib
import json
import math
import shutil
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_cluster.tiny_models import TinyModel
from quire_engine.config import EngineConfig, LoraModule
from quire_engine.fetch.headers import read_local
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
    stored: torch.dtype | None = torch.bfloat16  # None: the GGUF of Q4_1 blocks
    value_bytes: float = 2.0  # that a weight takes, to know that the case is what it says
    num_adapters: int = 0


PRECISIONS = {
    "bf16": Precision({}),
    "fp32": Precision({}, torch.float32, 4.0),
    "int8": Precision({"quantization": "int8"}, value_bytes=1 + 2 / 64),
    # 21 % of the weights are the embedding's, in int8
    "int4": Precision(
        {"quantization": "int4"}, value_bytes=0.79 * (0.5 + 4 / 32) + 0.21 * (1 + 2 / 64)
    ),
    "adapters": Precision({}, num_adapters=3),
    # Q4_1, and the embedding in Q8_0
    "gguf": Precision({}, stored=None, value_bytes=0.79 * 20 / 32 + 0.21 * 34 / 32),
}


@pytest.fixture(scope="module")
def checkpoint(smollm, tmp_path_factory):
    """The real model, its weights stored in a format."""
    original = smollm.safetensors
    folder = tmp_path_factory.mktemp("fp32")

    def checkpoint(dtype: torch.dtype | None) -> Path:
        if dtype is None:
            return smollm.gguf
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
        self._baseline = self.peak = 0
        self._baseline = self.used()
        self.peak = 0
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def used(self) -> int:
        fields = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        used = int(fields["RssAnon"].split()[0]) * 1024 - self._baseline
        self.peak = max(self.peak, used)
        return used

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        with contextlib.suppress(OSError, KeyError):  # the process has ended
            while not self._ended.wait(0.003):
                self.used()


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


def started(core, model, **fields):
    """A core that has loaded `model`, its memory since its imports were done, and its CoreReady."""
    running = core(model, num_threads=2, kv_cache_memory_bytes=None, **fields).start()
    while running.progress.read().pending == 0:  # it imports
        time.sleep(0.0005)
    memory = Memory(running.process.pid)
    return running, memory, running.receive()


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
    running, memory, ready = started(core, model, **flags)
    assert isinstance(ready, CoreReady)
    assert (ready.num_blocks, ready.weight_bytes) == (plan.num_blocks, plan.weight_bytes)
    assert ready.weight_bytes == pytest.approx(plan.parameters * precision.value_bytes, rel=0.01)
    loaded = plan.weight_bytes + plan.adapter_bytes + plan.table_bytes
    cache_bytes = plan.num_blocks * plan.block_bytes  # becomes real from now on
    assert loaded * (1 - TOLERANCE) <= memory.used() <= (loaded + cache_bytes) * (1 + TOLERANCE)

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
    planned = plan.fixed_bytes - plan.runtime_bytes + cache_bytes
    used, peak = memory.used(), memory.peak
    memory.close()
    running.send(Shutdown())
    assert running.process.wait(timeout=30) == 0
    assert used == pytest.approx(planned, rel=TOLERANCE)
    assert peak <= planned * (1 + TOLERANCE)


# ---- a matrix of 210 MB in bfloat16: a vocabulary of 102,400 words -----------------------------

WORDS, HIDDEN = 102_400, 1024
LARGE = TinyModel(
    hidden_size=HIDDEN, intermediate_size=64, num_layers=1, num_heads=8, num_kv_heads=8,
    vocab_size=WORDS,
)  # fmt: skip
EMBEDDING = "model.embed_tokens.weight"


def write_large_gguf(folder: Path, type_name: str) -> Path:
    """Zeros, which are sparse on a disk and take as much as any number once they are loaded."""
    path, kind = folder / "large.gguf", gguf.GGMLQuantizationType[type_name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LARGE.num_layers)
    writer.add_context_length(LARGE.max_model_len)
    writer.add_embedding_length(LARGE.hidden_size)
    writer.add_feed_forward_length(LARGE.intermediate_size)
    writer.add_head_count(LARGE.num_heads)
    writer.add_head_count_kv(LARGE.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(LARGE.vocab_size)
    writer.add_token_list([f"word {number}" for number in range(WORDS)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LARGE.num_layers)
    num_bytes = 0
    for name, shape in LARGE.shapes().items():
        if name == "lm_head.weight":
            continue
        is_large = name == EMBEDDING
        stored = gguf.quants.quant_shape_to_byte_shape(shape, kind) if is_large else shape
        array = np.broadcast_to(np.zeros((), np.uint8 if is_large else np.float32), stored)
        writer.add_tensor_info(
            names.get_name(name, try_suffixes=(".weight",)), stored, array.dtype, array.nbytes,
            raw_dtype=kind if is_large else None,
        )  # fmt: skip
        num_bytes += -(-array.nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + num_bytes)
    return path


def write_large_safetensors(folder: Path, dtype: str, value_bytes: int) -> Path:
    config = LARGE.config() | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, shape in sorted(LARGE.shapes().items(), key=lambda item: item[0] == EMBEDDING):
        if name != "lm_head.weight":
            end = offset + math.prod(shape) * value_bytes
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        if dtype == "F32":  # the last value alone is one that bfloat16 does not hold
            file.seek(8 + len(text) + offset - 4)
            file.write(struct.pack("<f", 1.0001))
    return folder


@pytest.mark.parametrize(
    ("stored", "flags", "value_bytes"),
    [
        ("Q6_K", {}, 274 / 256),
        ("Q6_K", {"dtype": "bfloat16"}, 2),
        ("F16", {"quantization": "int8"}, 1 + 2 / 64),
        ("safetensors F32", {}, 4),
        ("safetensors BF16", {"quantization": "int8"}, 1 + 2 / 64),
        ("safetensors BF16", {"load_format": "dummy"}, 2),
    ],
)
def test_loading_takes_no_more_than_what_is_planned(core, tmp_path, stored, flags, value_bytes):
    """Nothing of a matrix's size exists beside what it becomes."""
    folder = tmp_path / "model"
    folder.mkdir()
    if stored.startswith("safetensors"):
        dtype = stored.split()[1]
        model = write_large_safetensors(folder, dtype, {"F32": 4, "BF16": 2}[dtype])
    else:
        model = write_large_gguf(folder, stored)
    shape = {"max_num_seqs": 1, "max_num_batched_tokens": 16, "num_gpu_blocks_override": 2}
    config = EngineConfig(model=str(model), device="cpu", **shape, **flags)
    plan = plan_of(read_local(model, config.load_format), config, None)
    layer_bytes = plan.weight_bytes - WORDS * HIDDEN * value_bytes
    assert 0 < layer_bytes < 18e6  # in float32, as a GGUF of ours has it
    running, memory, ready = started(core, model, **shape, **flags)
    assert isinstance(ready, CoreReady)
    peak = memory.peak
    memory.close()
    running.send(Shutdown())
    assert running.process.wait(timeout=30) == 0
    planned = plan.fixed_bytes - plan.runtime_bytes + plan.num_blocks * plan.block_bytes
    assert 0.9 * plan.weight_bytes <= peak <= planned * (1 + TOLERANCE)
