"""A core that costs nothing: started as a process in the real core's place, by the real core's
flags.

It answers a prompt with the prompt's own tokens, again and again, so that a test knows every
answer. Like the real one it keeps at most `max_num_seqs` running, gives each a token a step,
honours max_tokens, min_tokens and stop ids, drops aborted requests before the next step, and bumps
the progress file. It writes what it was told to do to `$FAKE_CORE_LOG`, one line each. Environment:

    FAKE_STEP_SECONDS   pause before each step, less what the last one's work took (0.001)
    FAKE_LOAD_SECONDS   pause before CoreReady (0)
    FAKE_FAIL           "<exit code>:<reason>:<message>": CoreFailed in place of CoreReady
    FAKE_VOCAB_SIZE     (1000)
    FAKE_MAX_MODEL_LEN  (4096)
    FAKE_GARBAGE        send a frame that is no message, in place of the first step's
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from quire_engine.config import EngineConfig
from quire_engine.messages import (
    AbortRequests,
    AddRequest,
    CoreFailed,
    CoreReady,
    CoreStats,
    Output,
    ResetPrefixCache,
    Shutdown,
    StepOutputs,
    ToCore,
    TokenLogprobs,
)
from quire_engine.progress import ProgressFile

BLOCK_SIZE = 16
NUM_BLOCKS = 10_000


@dataclass
class Running:
    """One sequence."""

    request: AddRequest
    arrived: float
    num_tokens: int = 0

    @property
    def num_blocks(self) -> int:
        return -(-(len(self.request.prompt_token_ids) + self.num_tokens) // BLOCK_SIZE)

    def next(self) -> Output:
        sampling, prompt = self.request.sampling, self.request.prompt_token_ids
        token_id = prompt[self.num_tokens % len(prompt)]
        self.num_tokens += 1
        stopped = token_id in sampling.stop_token_ids and self.num_tokens > sampling.min_tokens
        ended = "stop" if stopped else "length" if self.num_tokens >= sampling.max_tokens else None
        return Output(
            request_id=self.request.request_id,
            token_ids=(token_id,),
            finish_reason=ended,
            stop_token_id=token_id if stopped else None,
            num_cached_tokens=len(prompt) // BLOCK_SIZE * BLOCK_SIZE,
            logprobs=self._logprobs(token_id),
        )

    def _logprobs(self, token_id: int) -> tuple[TokenLogprobs, ...]:
        count = self.request.sampling.num_logprobs
        if count is None:
            return ()
        top = tuple(range(token_id, token_id + count))
        return (
            TokenLogprobs(
                chosen=-0.5, top_token_ids=top, top_logprobs=tuple(-0.5 - n for n in range(count))
            ),
        )


@dataclass
class FakeCore:
    """The loop."""

    config: EngineConfig
    requests: "zmq.Socket[bytes]"
    outputs: "zmq.Socket[bytes]"
    progress: ProgressFile
    step_seconds: float
    log: Path | None
    running: dict[str, Running] = field(default_factory=dict)
    waiting: dict[str, Running] = field(default_factory=dict)
    prompt_tokens: int = 0
    generation_tokens: int = 0
    queue_seconds: tuple[float, ...] = ()
    work_seconds: float = 0.0  # of the last step

    def serve(self) -> None:
        self.outputs.send(msgspec.msgpack.encode(self._ready()))
        while True:
            busy = bool(self.running or self.waiting)
            self.progress.mark(len(self.running) + len(self.waiting))
            if self.requests.poll(0 if busy else 1000) and self._receive():
                return
            if busy:
                self._step()
            elif os.getppid() == 1:
                return

    def _receive(self) -> bool:
        """Take what is there; whether to leave."""
        dropped = False
        while self.requests.poll(0):
            message = msgspec.msgpack.decode(self.requests.recv(), type=ToCore)
            match message:
                case AddRequest():
                    self._tell(f"add {message.request_id} {message.sampling} {message.cache_salt}")
                    if message.adapter:
                        self._tell(f"adapter {message.request_id} {message.adapter}")
                    if message.priority or message.user:
                        who = f"{message.priority} {message.user}"
                        self._tell(f"order {message.request_id} {who}")
                    self.waiting[message.request_id] = Running(message, time.monotonic())
                case AbortRequests():
                    for request_id in message.request_ids:
                        self._tell(f"abort {request_id}")
                        self.running.pop(request_id, None)
                        self.waiting.pop(request_id, None)
                    dropped = True
                case ResetPrefixCache():
                    self._tell("reset")
                case Shutdown():
                    self._tell("shutdown")
                    return True
        if dropped and not self.running and not self.waiting:
            self._report((), 0)
        return False

    def _step(self) -> None:
        time.sleep(max(0.0, self.step_seconds - self.work_seconds))
        begun = time.monotonic()
        self.queue_seconds = ()
        while self.waiting and len(self.running) < self.config.max_num_seqs:
            request_id = next(iter(self.waiting))
            entry = self.running[request_id] = self.waiting.pop(request_id)
            self.prompt_tokens += len(entry.request.prompt_token_ids)
            self.queue_seconds += (time.monotonic() - entry.arrived,)
        if os.environ.get("FAKE_GARBAGE"):
            self.outputs.send(b"\xc1garbage")
        outputs = tuple(entry.next() for entry in self.running.values())
        self.generation_tokens += len(outputs)
        for output in outputs:
            if output.finish_reason is not None:
                del self.running[output.request_id]
        self._report(outputs, len(outputs))
        self.work_seconds = time.monotonic() - begun

    def _report(self, outputs: tuple[Output, ...], step_tokens: int) -> None:
        used = sum(entry.num_blocks for entry in self.running.values())
        stats = CoreStats(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            kv_cache_usage=used / NUM_BLOCKS,
            num_preemptions=0,
            prefix_cache_queries=self.prompt_tokens,
            prefix_cache_hits=0,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            step_tokens=step_tokens,
            queue_seconds=self.queue_seconds,
            num_free_blocks=NUM_BLOCKS - used,
            num_blocks=NUM_BLOCKS,
        )
        self.outputs.send(msgspec.msgpack.encode(StepOutputs(outputs=outputs, stats=stats)))

    def _ready(self) -> CoreReady:
        return CoreReady(
            max_model_len=int(os.environ.get("FAKE_MAX_MODEL_LEN", "4096")),
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            vocab_size=int(os.environ.get("FAKE_VOCAB_SIZE", "1000")),
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=8192,
            dtype="float32",
            device="cpu",
            kernels="none",
            weight_bytes=0,
            kv_cache_bytes=0,
            startup_seconds={"imports": 0.1, "weights": 0.0},
        )

    def _tell(self, line: str) -> None:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{time.monotonic()} {line}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--config", "--requests", "--outputs", "--progress", "--parent"):
        parser.add_argument(flag, required=True)
    arguments = parser.parse_args()
    context = zmq.Context()
    requests, outputs = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket in (requests, outputs):
        socket.set_hwm(0)
    requests.connect(arguments.requests)
    outputs.connect(arguments.outputs)
    progress = ProgressFile.open(Path(arguments.progress))
    progress.mark(1)
    time.sleep(float(os.environ.get("FAKE_LOAD_SECONDS", "0")))
    if fail := os.environ.get("FAKE_FAIL"):
        code, reason, message = fail.split(":", 2)
        failed = CoreFailed(exit_code=int(code), reason=reason, message=message)
        outputs.send(msgspec.msgpack.encode(failed))
        context.destroy(linger=1000)
        sys.exit(int(code))
    log = os.environ.get("FAKE_CORE_LOG")
    FakeCore(
        config=EngineConfig.read(Path(arguments.config)),
        requests=requests,
        outputs=outputs,
        progress=progress,
        step_seconds=float(os.environ.get("FAKE_STEP_SECONDS", "0.001")),
        log=Path(log) if log else None,
    ).serve()
    context.destroy(linger=1000)


if __name__ == "__main__":
    main()
