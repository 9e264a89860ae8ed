"""InferenceServices as their owners write them, and clients as their callers use them."""

import concurrent.futures
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai

from quire_cluster import kube

MODEL = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"


def manifest(name: str = "chat", **spec: object) -> kube.Json:
    """An InferenceService that runs on a CPU; `spec` replaces whole top-level fields."""
    return {
        "apiVersion": "serving.quire.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": MODEL},
            "resources": {"gpus": 0, "memory": "3Gi"},
            "cache": {"size": "1Gi"},
            **spec,
        },
    }


def prefetched(uri: str, size: str) -> kube.Json:
    """A service that fetches its model and runs nothing; with memory enough to be told that it
    fits, which no pod is made of."""
    return manifest(
        model={"uri": uri},
        cache={"size": size, "prefetch": True},
        resources={"gpus": 0, "memory": "32Gi"},
        replicas=0,
    )


@contextmanager
def fresh_namespace(prefix: str) -> Iterator[str]:
    """A namespace of its own, whose services go before it does."""
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    kube.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kube.kubectl("delete", "inferenceservices", "--all", namespace=name)
        kube.kubectl("delete", "namespace", name, "--wait=false")


@contextmanager
def connect(namespace: str, name: str = "chat") -> Iterator[openai.OpenAI]:
    """An OpenAI client of the service; it never retries, so that a test sees every failure."""
    with kube.service_address(namespace, name) as address:
        client = openai.OpenAI(
            base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=60
        )
        with client:
            yield client


def ask(
    client: openai.OpenAI, question: str = QUESTION, model: str = "chat", max_tokens: int = 32
) -> str:
    """One greedy answer."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=max_tokens,
    )
    return answer.choices[0].message.content or ""


def stream(client: openai.OpenAI, question: str = QUESTION, model: str = "chat") -> Iterator[str]:
    """The pieces of one greedy answer as they arrive."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=64,
        stream=True,
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


@dataclass(frozen=True)
class BurstResult:
    num_answered: int
    errors: tuple[str, ...]
    seconds: float


class Burst:
    """Callers that each ask, wait for the answer and ask again until `stop` or the limit."""

    def __init__(
        self, client: openai.OpenAI, num_callers: int, limit_seconds: float, model: str = "chat"
    ) -> None:
        self._client = client
        self._model = model
        self._deadline = time.monotonic() + limit_seconds
        self._started = time.monotonic()
        self._stopping = False
        self._pool = concurrent.futures.ThreadPoolExecutor(num_callers)
        self._callers = [self._pool.submit(self._call, i) for i in range(num_callers)]

    def _call(self, caller: int) -> tuple[int, list[str]]:
        num_answered, errors = 0, []
        while not self._stopping and time.monotonic() < self._deadline:
            try:
                ask(self._client, f"Count from {caller} upwards.", self._model, max_tokens=48)
                num_answered += 1
            except openai.OpenAIError as error:
                errors.append(f"caller {caller}: {error}")
        return num_answered, errors

    def stop(self) -> BurstResult:
        """Let the calls that run end, and say what the callers got."""
        self._stopping = True
        results = [caller.result() for caller in self._callers]
        self._pool.shutdown()
        return BurstResult(
            num_answered=sum(answered for answered, _ in results),
            errors=tuple(error for _, errors in results for error in errors),
            seconds=time.monotonic() - self._started,
        )
