"""llama.cpp by its llama_batch, one sequence a slot: `run_llama_cpp.py GGUF NUM_THREADS`.

A prompt's last token alone asks for logits; all sequences decode in one batch; the largest logit is
picked by numpy, as llama-cpp-python has no greedy call for several sequences.
"""

import ctypes
import sys
import time

import llama_cpp
import numpy as np
from channel import answer_requests, open_channel

MAX_SEQUENCES, CONTEXT = 32, 256  # of tokens a sequence
PROMPT_TOKENS_AT_ONCE = 1024  # of 512, 1024 and 2048 none is faster by more than the noise


class LlamaCpp:
    """A model, and a context for each number of sequences, as slots that idle cost time."""

    def __init__(self, path: str, num_threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        assert self._model, f"{path} was not loaded"
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._num_threads = num_threads
        self._batch = llama_cpp.llama_batch_init(MAX_SEQUENCES * CONTEXT, 0, 1)
        self._context: object = None

    def run(self, prompts: list[list[int]], answer_len: int) -> float:
        """Every prompt's greedy continuation; when the first prompts' first token was there."""
        self._context = self._new_context(len(prompts))
        try:
            last, first = self._prefill(prompts)
            for step in range(answer_len - 1):
                self._decode(
                    [(token, len(prompts[s]) + step, s, True) for s, token in enumerate(last)]
                )
                last = [self._likeliest(s) for s in range(len(prompts))]
            return first
        finally:
            llama_cpp.llama_free(self._context)

    def _prefill(self, prompts: list[list[int]]) -> tuple[list[int], float]:
        last, first = [], 0.0
        at_once = max(1, PROMPT_TOKENS_AT_ONCE // len(prompts[0]))
        for begin in range(0, len(prompts), at_once):
            tokens, ends = [], []
            for s, prompt in enumerate(prompts[begin : begin + at_once], begin):
                end = len(prompt) - 1
                tokens += [(token, at, s, at == end) for at, token in enumerate(prompt)]
                ends.append(len(tokens) - 1)
            self._decode(tokens)
            last += [self._likeliest(index) for index in ends]
            first = first or time.perf_counter()
        return last, first

    def _new_context(self, num_sequences: int) -> object:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_sequences * CONTEXT
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = self._num_threads
        return llama_cpp.llama_init_from_model(self._model, params)

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wants_logits) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wants_logits
        code = llama_cpp.llama_decode(self._context, batch)
        assert code == 0, f"llama_decode: {code}"

    def _likeliest(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._num_tokens,))))


def main() -> None:
    channel = open_channel()
    # thousands of lines a context otherwise
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    model = LlamaCpp(sys.argv[1], int(sys.argv[2]))
    build = llama_cpp.llama_print_system_info().decode().strip()
    facts = {"version": f"llama-cpp-python {llama_cpp.__version__}", "build": build}
    answer_requests(channel, facts, model.run)


if __name__ == "__main__":
    main()
