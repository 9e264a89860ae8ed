"""LoRA adapters of a service: planned, fetched to the model's claim, served under their names."""

import json
from pathlib import Path

import openai
import pytest
from tokenizers import Tokenizer

from quire_cluster import kube, serving
from quire_cluster.faults import Hub
from quire_cluster.tiny_adapters import write_tiny_adapter
from quire_engine.config import EngineConfig, LoraModule
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.start import start_engine

pytestmark = pytest.mark.e2e

MODEL = serving.MODEL.removeprefix("hf://")
PROMPT = "The capital of France is"
NUM_TOKENS = 12
READY_SECONDS = 180


@pytest.fixture(scope="module")
def adapters(hub_root: Path) -> dict[str, Path]:
    """Two adapters on the mirror, which answer otherwise than the model."""
    config = json.loads((hub_root / MODEL / "config.json").read_text())
    return {
        name: write_tiny_adapter(hub_root / "quire-tests" / f"lora-{name}", config, **strength)
        for name, strength in (
            ("first", {"seed": 1, "alpha": 320, "rank": 8}),
            ("second", {"seed": 2, "alpha": 400, "rank": 16}),
        )
    }


def manifest(*names: str, **spec: kube.Json) -> kube.Json:
    listed = [{"name": name, "uri": f"hf://quire-tests/lora-{name}"} for name in names]
    return serving.manifest(model={"uri": serving.MODEL, "adapters": listed}, **spec)


def ask(client: openai.OpenAI, model: str) -> str:
    done = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=NUM_TOKENS, temperature=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    return done.choices[0].text


def locally(folder: Path, adapters: dict[str, Path]) -> dict[str, str]:
    """What the engine answers here, for the model and for each adapter, in one batch."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    modules = tuple(LoraModule(name, str(path)) for name, path in adapters.items())
    config = EngineConfig(
        model=str(folder), device="cpu", lora_modules=modules, kv_cache_memory_bytes=1 << 26
    )
    engine, _ = start_engine(config)
    for name in ("", *adapters):
        engine.add_request(
            AddRequest(
                request_id=RequestId(name),
                prompt_token_ids=tuple(tokenizer.encode(PROMPT).ids),
                sampling=SamplingParams(temperature=0, max_tokens=NUM_TOKENS),
                adapter=name,
            )
        )
    tokens: dict[str, list[int]] = {name: [] for name in ("", *adapters)}
    while engine.num_pending:
        for output in engine.step().outputs:
            tokens[output.request_id] += output.token_ids
    return {name: tokenizer.decode(ids) for name, ids in tokens.items()}


def test_adapters_answer_by_their_names_as_the_engine_does_here(
    namespace: str, adapters: dict[str, Path], hub: Hub, hub_root: Path
) -> None:
    """One, then a second one: a new revision on the same claim, and neither the model nor the first
    adapter is fetched again."""
    expected = locally(hub_root / MODEL, adapters)
    kube.apply(manifest("first"), namespace)
    kube.wait_ready(namespace, "chat", READY_SECONDS)
    with serving.connect(namespace) as client:
        cards = {card.id: card.model_extra or {} for card in client.models.list()}
        told = {name: ask(client, name or "chat") for name in ("", "first")}
        with pytest.raises(openai.NotFoundError):
            ask(client, "second")
    assert cards.keys() == {"chat", "first"}
    assert (cards["chat"]["parent"], cards["first"]["parent"]) == (None, "chat")
    assert told == {name: expected[name] for name in ("", "first")}
    assert told["first"] != told[""]

    hub.clear_log()
    kube.apply(manifest("first", "second"), namespace)
    kube.wait_ready(namespace, "chat", READY_SECONDS)
    size = (adapters["second"] / "adapter_model.safetensors").stat().st_size
    # The plan reads headers; and the weights come once.
    assert size <= hub.bytes_served("adapter_model.safetensors") < 2 * size
    assert hub.bytes_served("/model.safetensors") < 1_000_000
    with serving.connect(namespace) as client:
        assert ask(client, "second") == expected["second"] != expected[""]
    assert len(kube.items("persistentvolumeclaims", namespace)) == 1


def test_without_a_claim_each_pod_fetches_its_adapters(
    namespace: str, adapters: dict[str, Path], hub_root: Path
) -> None:
    kube.apply(manifest("first", cache={"mode": "none"}), namespace)
    kube.wait_ready(namespace, "chat", READY_SECONDS)
    expected = locally(hub_root / MODEL, {"first": adapters["first"]})
    with serving.connect(namespace) as client:
        assert ask(client, "first") == expected["first"]


def test_an_adapter_of_another_model_is_told_before_anything_is_fetched(
    namespace: str, hub: Hub, hub_root: Path
) -> None:
    config = json.loads((hub_root / MODEL / "config.json").read_text())
    other = config | {"num_hidden_layers": config["num_hidden_layers"] + 1}
    write_tiny_adapter(hub_root / "quire-tests" / "lora-other", other)
    kube.apply(manifest("other"), namespace)
    message = kube.wait_reason(namespace, "chat", "UnsupportedModel", 60)
    assert "hf://quire-tests/lora-other" in message
    assert kube.items("persistentvolumeclaims", namespace) == []
