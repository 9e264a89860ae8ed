"""Amounts of memory as Kubernetes writes them. Pure.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity: case counts, and m
is a thousandth. A B behind a unit is what people write and Kubernetes does not.
"""

import math
import re
from fractions import Fraction

from quire_engine.errors import ConfigError

_QUANTITY = re.compile(
    r"(?P<number>\d+\.?\d*|\.\d+)\s*"
    r"(?:[eE](?P<exponent>[+-]?\d{1,2})|(?P<part>[num])|(?P<unit>|[kMGTPE]|[KMGTPE]i)B?)",
    re.ASCII,
)
_DECIMAL, _BINARY = "kMGTPE", "KMGTPE"
_UNITS = (
    {"": Fraction(1)}
    | {unit: Fraction(1000 ** (n + 1)) for n, unit in enumerate(_DECIMAL)}
    | {f"{unit}i": Fraction(1024 ** (n + 1)) for n, unit in enumerate(_BINARY)}
)
_PARTS = {"m": Fraction(1, 10**3), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9)}


def parse_bytes(text: str) -> int:
    """The bytes of 24Gi, 24GiB, 24G, 24GB, 1e9, 1000m or plain bytes, a part of one rounded up.

    ConfigError for anything else, and for thousandths that come to no whole bytes: who writes 512m
    means 512M.
    """
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"memory must be a number of bytes or a Kubernetes quantity, got {text!r}; write it as "
            "24GiB or 24Gi"
        )
    number, part = Fraction(found["number"]), found["part"]
    if part is not None and (number * _PARTS[part]).denominator != 1:
        raise ConfigError(
            f"memory must be whole bytes, got {text!r}, where {part} means {_PARTS[part]}; write M "
            "for millions, or Mi"
        )
    if found["exponent"] is not None:
        return math.ceil(number * Fraction(10) ** int(found["exponent"]))
    return math.ceil(number * (_UNITS[found["unit"]] if part is None else _PARTS[part]))
