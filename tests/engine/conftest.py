import copy
import functools
import json
import os
import subprocess
import sys

import msgspec
import pytest
import torch
import zmq

from quire_cluster.tiny_adapters import write_tiny_adapter
from quire_engine.config import EngineConfig
from quire_engine.messages import FromCore
from quire_engine.progress import ProgressFile

# A serving process too gives torch one thread beside the C++ kernels: where cores are busy, each
# small operation on several waits for the last of them (a maximum of 49,152: 2 ms, not 0.01).
torch.set_num_threads(1)

FAMILIES = ("llama", "llama-scaled", "llama-untied-bias", "qwen2", "qwen2-tied", "qwen3")

_SHAPES = {
    "vocab_size": 128,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # large, so that attention and norms matter
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _reference(family):
    import transformers as t

    shapes = _SHAPES
    models = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**shapes, tie_word_embeddings=True)),
        "llama-scaled": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**shapes, rope_parameters=_LLAMA3, tie_word_embeddings=True)
        ),
        "llama-untied-bias": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**shapes, attention_bias=True, tie_word_embeddings=False)
        ),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**shapes)),
        "qwen2-tied": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**shapes, tie_word_embeddings=True)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**shapes, head_dim=16)),
    }
    torch.manual_seed(FAMILIES.index(family))
    model = models[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # transformers starts them at zero, where they would not show
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch):
    """All here is plain HTTP on loopback, and each client would read the system's roots (40 ms)."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


@pytest.fixture(scope="session")
def reference_model():
    """A tiny random transformers model of a family, the same one each time."""
    return functools.cache(_reference)


@pytest.fixture(scope="session")
def tiny_model(reference_model, tmp_path_factory):
    """Writes a family's tiny model in `dtype` as transformers does; gives its folder."""

    def tiny_model(family="llama", dtype=torch.float32, shard_size="1GB"):
        folder = tmp_path_factory.mktemp(family)
        model = copy.deepcopy(reference_model(family)).to(dtype)
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder

    return tiny_model


@pytest.fixture
def make_adapter(tmp_path):
    """Writes a random LoRA adapter for the model in a folder; gives its folder."""

    def make_adapter(model, name="adapter", **fields):
        config = json.loads((model / "config.json").read_text())
        return write_tiny_adapter(tmp_path / name, config, **fields)

    return make_adapter


@pytest.fixture(scope="session")
def smollm():
    """Where the real model lies (`quire_cluster.model.ModelPaths`): made if it is not there, and
    hashed once."""
    from quire_cluster.model import prepare_model

    return prepare_model()


RECEIVE_MS = 60_000  # a core that imports torch on a busy machine


class CoreUnderTest:
    """A started core, its sockets and its pulse."""

    def __init__(self, folder, model, **fields):
        self.context = zmq.Context()
        self.requests = self._bind(zmq.PUSH, folder / "requests")
        self.outputs = self._bind(zmq.PULL, folder / "outputs")
        self.progress = ProgressFile.create(folder / "progress")
        fields = {"device": "cpu", "kv_cache_memory_bytes": 1 << 20, "num_threads": 1, **fields}
        (folder / "config.json").write_bytes(EngineConfig(model=str(model), **fields).to_json())
        self.command = [
            *(sys.executable, "-m", "quire_engine.core"),
            *("--config", str(folder / "config.json")),
            *("--requests", f"ipc://{folder}/requests"),
            *("--outputs", f"ipc://{folder}/outputs"),
            *("--progress", str(folder / "progress")),
        ]
        self.process = None

    def start(self):
        command = [*self.command, "--parent", str(os.getpid())]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        return self

    def send(self, message):
        self.requests.send(msgspec.msgpack.encode(message))

    def receive(self):
        assert self.outputs.poll(RECEIVE_MS), "the core said nothing"
        return msgspec.msgpack.decode(self.outputs.recv(), type=FromCore)

    def receive_until_idle(self):
        """All outputs up to the report of an idle core, and that report's stats."""
        outputs = []
        while True:
            message = self.receive()
            outputs += message.outputs
            if not message.outputs and message.stats.num_running + message.stats.num_waiting == 0:
                return outputs, message.stats

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.context.destroy(linger=0)

    def _bind(self, kind, path):
        socket = self.context.socket(kind)
        socket.bind(f"ipc://{path}")
        return socket


@pytest.fixture
def core(tmp_path):
    """Makes a core, not yet started, that is ended with the test."""
    cores = []

    def core(model, **fields):
        cores.append(CoreUnderTest(tmp_path, model, **fields))
        return cores[-1]

    yield core
    for made in cores:
        made.close()
