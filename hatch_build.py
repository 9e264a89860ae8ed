"""Build hook: compiles the CPU kernels when a wheel or an editable install is made."""

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("kernels/quire_kernels")


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs quire_kernels/build.py and marks the wheel as this platform's.

    Without a variant for this kind of machine the wheel stays pure Python and torch does the work.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile unless the libraries are those of these very sources."""
        builder = _load_builder(Path(self.root) / PACKAGE / "build.py")
        if self.target_name != "wheel" or not builder.is_supported_machine():
            return
        try:
            libraries = builder.build()
        except builder.BuildFailed as error:
            sys.exit(str(error))
        platform_tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        # ctypes loads the libraries: any Python 3 of this platform will do
        build_data["tag"] = f"py3-none-{platform_tag}"
        if version != "editable":
            build_data["force_include"] |= {
                str(path): f"quire_kernels/_lib/{path.name}" for path in libraries
            }


def _load_builder(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("quire_kernels_build", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} must be there for the CPU kernels to be compiled")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
