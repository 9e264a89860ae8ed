"""What clients send in the soak: drawn from a seed, so that a failure can be had again."""

import json
import random
from dataclasses import dataclass
from typing import Literal

Leave = Literal["never", "in the body", "at once", "while it streams"]

PREFIXES = [
    f"You are assistant number {number}, and you answer briefly. " * 3 for number in range(8)
]
WORDS = ("hello", "world", "ab", "the", "wörld", "naïve", "x", "0", "日本", "!")
STOPS = ("a", "he", "l", "Q", "xyz", " w")
GOOD_WEIGHTS: dict[Leave, int] = {
    "never": 80,
    "at once": 9,
    "while it streams": 9,
    "in the body": 2,
}
BAD_SHARE = 0.08
PRIORITIES = (0, 0, 0, -1, 1, 5)

BAD: tuple[tuple[str, bytes], ...] = (
    ("broken JSON", b'{"prompt": "hel'),
    ("no JSON", b"\xff\xfe\x00"),
    ("an unknown field", b'{"prompt": "a", "tempereture": 1}'),
    ("no prompt", b"{}"),
    ("an empty prompt", b'{"prompt": ""}'),
    ("a prompt that is too long", json.dumps({"prompt": [5] * 5000}).encode()),
    ("ids out of the vocabulary", b'{"prompt": [1, 2, 999999]}'),
    ("an answer that is too long", b'{"prompt": "a", "max_tokens": 100000}'),
    ("no choices", b'{"prompt": "a", "n": 0}'),
    ("too many choices", b'{"prompt": "a", "n": 1000}'),
    ("a wrong type", b'{"prompt": "a", "temperature": "hot"}'),
    ("another model", b'{"prompt": "a", "model": "somebody-elses"}'),
    ("an empty stop string", b'{"prompt": "a", "stop": ""}'),
    ("what is not built", b'{"prompt": "a", "echo": true}'),
)


@dataclass(frozen=True)
class Ask:
    """One request, and what its client does."""

    path: str
    body: bytes
    num_choices: int = 1
    stops: tuple[str, ...] = ()
    stream: bool = False
    leave: Leave = "never"
    is_bad: bool = False


def draw(chance: random.Random, *, priorities: bool) -> Ask:
    """The next request."""
    if chance.random() < BAD_SHARE:
        _, body = chance.choice(BAD)
        return Ask("/v1/completions", body, is_bad=True)
    num_choices = chance.choice((1, 1, 1, 1, 1, 1, 1, 2, 3, 4))
    fields, stops = _fields(chance, priorities=priorities), _stops(chance)
    if stops:
        fields["stop"] = list(stops)
    is_chat = chance.random() < 0.3
    text = _text(chance)
    what: dict[str, object] = {"prompt": text}
    if is_chat:
        what = {"messages": [{"role": "user", "content": text}]}
    [leave] = chance.choices(list(GOOD_WEIGHTS), list(GOOD_WEIGHTS.values()))
    stream = leave == "while it streams" or chance.random() < 0.5
    body = json.dumps({**what, **fields, "n": num_choices, "stream": stream}).encode()
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    return Ask(path, body, num_choices, stops, stream, leave)


def _fields(chance: random.Random, *, priorities: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "max_tokens": min(200, 1 + int(chance.expovariate(1 / 12))),
        "temperature": chance.choice((0, 0.7, 1.0)),
    }
    if chance.random() < 0.3:
        fields["seed"] = chance.randrange(1000)
    if chance.random() < 0.1:
        fields["cache_salt"] = chance.choice(("one", "two"))
    if chance.random() < 0.3:
        fields["ignore_eos"] = True
    if priorities:
        fields["priority"] = chance.choice(PRIORITIES)
    return fields


def _stops(chance: random.Random) -> tuple[str, ...]:
    return tuple(chance.sample(STOPS, chance.randint(1, 3))) if chance.random() < 0.25 else ()


def _text(chance: random.Random) -> str:
    """A tail of up to 100 words, every other one behind a shared beginning: at most 900 tokens."""
    words = " ".join(chance.choices(WORDS, k=min(100, 1 + int(chance.expovariate(1 / 25)))))
    return (chance.choice(PREFIXES) if chance.random() < 0.5 else "") + words
