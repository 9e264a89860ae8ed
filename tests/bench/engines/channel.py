"""One contestant's side of the bench: a line of JSON in, a line of JSON out, over stdin and stdout.

Runs under a peer's own Python, so that it imports nothing but the standard library.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

# prompts, tokens to answer each with -> when the first answered token was there (None: not known)
Run = Callable[[list[list[int]], int], float | None]


def open_channel() -> TextIO:
    """Where answers go. What libraries print to stdout goes to stderr from now on."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def answer_requests(channel: TextIO, facts: dict[str, object], run: Run) -> None:
    """Say that all is loaded, with `facts`; then run what is asked for until stdin closes."""
    print(json.dumps(facts), file=channel)
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.perf_counter()
        first = run(request["prompts"], request["answer_len"])
        end = time.perf_counter()
        answer = {"seconds": end - begin, "first": None if first is None else first - begin}
        print(json.dumps(answer), file=channel)
