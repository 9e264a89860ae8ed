"""Fixtures of the simulator's tests."""

from typing import Any

import pytest


@pytest.fixture
def raw() -> dict[str, Any]:
    """The least that a scenario file may say, as YAML reads it; each test changes its part."""
    return {
        "durationSeconds": 600,
        "scaling": {},
        "engine": {
            "prefillTokensPerSecond": 8000,
            "decodeStepSeconds": {1: 0.02, 32: 0.035},
            "maxNumSeqs": 32,
            "kvTokens": 60_000,
            "startupSeconds": 30,
        },
        "load": {"phases": [{"kind": "constant", "durationSeconds": 600, "perSecond": 1}]},
    }
