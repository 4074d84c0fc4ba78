"""Put compiled CPU kernels into the wheel, as a hook of hatchling.

The variable ASSAY_KERNELS_PYTHON names a Python with the packages of the service; the kernels are for its version of
torch. Without the variable the wheel is pure, and the service compiles its kernels when it first starts.
"""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = (
    "import torch; from assay_service.scoring.kernels.build import build_all; "
    "print(torch.__version__, *build_all(), sep='\\n')"
)
_TO = "assay_service/scoring/kernels/built"
_MACHINES = ("x86_64", "amd64")


class KernelsHook(BuildHookInterface):  # type: ignore[misc]
    """The build of the kernels, and of the tag of the wheel that has them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels from this tree's sources, and add them to the wheel.

        Raises:
            RuntimeError: this machine is not one that the kernels are for.
            CalledProcessError: there is no compiler, it has failed, or the Python lacks a package.
        """
        python = os.environ.get("ASSAY_KERNELS_PYTHON")
        if not python or version == "editable":
            return
        if platform.system() != "Linux" or platform.machine().lower() not in _MACHINES:
            raise RuntimeError("ASSAY_KERNELS_PYTHON is set, but the kernels are for Linux on x86-64 only")
        environment = os.environ | {"PYTHONPATH": str(Path(self.root) / "service")}
        command = [python, "-c", _BUILD]
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
        torch_version, *libraries = done.stdout.splitlines()
        for library in libraries:
            build_data["force_include"][library] = f"{_TO}/{torch_version}/{Path(library).name}"
        build_data["pure_python"] = False
        # Not a manylinux tag: the libraries need the glibc and libstdc++ of the machine that builds them, or newer.
        build_data["tag"] = "py3-none-linux_x86_64"
