"""How long prompts and answers are: lognormal about ShareGPT's means.

    python tests/bench/lengths.py [--seed 0] [--rows 200] [--out FILE.csv]

writes the table that bench_servers.py sends. arXiv 2309.06180 gives ShareGPT's means: 161 tokens
in, 338 out. Each is cut to half the context, so that the longest fit; the bench's report tells what
the cut left of the means.
"""

import argparse
import csv
import math
import random
from dataclasses import dataclass
from pathlib import Path

CONTEXT = 2048
MEAN_PROMPT, MEAN_ANSWER, SIGMA = 161, 338, 1.0
TABLE = Path(__file__).parent / "lengths.csv"
HEAD = ["prompt_len", "answer_len"]


@dataclass(frozen=True)
class Lengths:
    """Tokens of one request."""

    prompt: int
    answer: int


def length(chance: random.Random, mean: float) -> int:
    """Lognormal of that mean."""
    drawn = chance.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)
    return max(1, min(CONTEXT // 2 - 1, round(drawn)))


def drawn_table(seed: int, rows: int) -> list[Lengths]:
    """As many pairs, from the seed."""
    chance = random.Random(seed)
    return [Lengths(length(chance, MEAN_PROMPT), length(chance, MEAN_ANSWER)) for _ in range(rows)]


def write_table(table: list[Lengths], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEAD)
        writer.writerows([each.prompt, each.answer] for each in table)


def read_table(path: Path) -> list[Lengths]:
    """The rows of a table; ValueError names the line that is none."""
    if not path.is_file():
        raise ValueError(f"the table must be a file, got {path}; tests/bench/lengths.py writes one")
    with path.open(newline="") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    if head != HEAD or not rows:
        raise ValueError(f"{path} must have the columns {','.join(HEAD)} and rows, got {head}")
    return [_row(row, f"{path}, line {number}") for number, row in enumerate(rows, 2)]


def _row(row: list[str], where: str) -> Lengths:
    if len(row) != len(HEAD) or not all(cell.isdecimal() and int(cell) for cell in row):
        raise ValueError(f"{where}: a row must be two numbers >= 1, got {','.join(row)!r}")
    prompt, answer = map(int, row)
    if prompt + answer > CONTEXT:
        raise ValueError(f"{where}: prompt and answer must fit {CONTEXT} tokens, got {row}")
    return Lengths(prompt, answer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    if options.rows < 1:
        parser.error(f"--rows must be >= 1, got {options.rows}")
    write_table(drawn_table(options.seed, options.rows), options.out)


if __name__ == "__main__":
    main()
