import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(110)
def test_triton_kernels_under_the_interpreter() -> None:
    """The tests marked `interpreter`, in the process of their own that they need."""
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-m", "interpreter", str(folder)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        command, env=environment, cwd=folder.parents[1], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
