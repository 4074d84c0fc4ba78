"""The versions of the frameworks that `test_frameworks.py` runs, and how each is installed.

Each has a folder of its own, which comes before the packages of this environment on the path. So torch and all else
that is here already is shared, and a pin may differ from the version here. `drive_NAME.py` runs with that path.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

# First the framework, then what its reward loop imports and this environment has not, or has in another version.
PINS = {
    "areal": [
        "areal==1.0.4",
        "aiofiles==25.1.0",
        "antlr4-python3-runtime==4.9.3",
        "blinker==1.9.0",
        "colorlog==6.12.0",
        "einops==0.8.2",
        "flask==3.1.3",
        "hydra-core==1.3.8",
        "itsdangerous==2.2.0",
        "lark==1.3.1",
        "llvmlite==0.50.0",
        "msgpack==1.2.4",
        "numba==0.68.1",
        "omegaconf==2.3.1",
        "ray==2.60.0",
        "torchdata==0.11.0",
        "uvloop==0.23.0",
    ],
    "llama_factory": ["llamafactory==0.9.5"],
    "ms_swift": [
        "ms-swift==4.6.0",
        "cffi==2.1.1",
        "cryptography==50.0.2",
        "dacite==1.9.2",
        "json_repair==0.64.6",
        "modelscope==1.40.2",
        "modelscope-hub==0.5.1",
    ],
    "nemo_gym": [
        "nemo-gym==0.4.0",
        "antlr4-python3-runtime==4.9.3",
        "gprof2dot==2025.4.14",
        "hydra-core==1.3.8",
        "itsdangerous==2.2.0",
        "msgpack==1.2.4",
        "omegaconf==2.3.1",
        "opentelemetry-api==1.45.2",
        "pydot==4.0.1",
        "ray==2.60.0",
        "wandb==0.31.0",
        "yappi==1.7.6",
    ],
    "openrlhf": ["openrlhf==0.11.2", "pylatexenc==2.11"],
    "rerank": [
        "langchain-community==0.4.2",
        "llama-index-postprocessor-jinaai-rerank==0.6.0",
        "banks==2.5.1",
        "dataclasses-json==0.6.7",
        "deprecated==1.3.1",
        "filetype==1.2.0",
        "langchain-classic==1.0.8",
        "langchain-text-splitters==1.1.3",
        "llama-index-core==0.14.25",
        "llama-index-instrumentation==0.6.0",
        "llama-index-workflows==2.26.1",
        "marshmallow==3.26.2",
        "sqlalchemy==2.1.9",
        "tinytag==2.3.2",
        "typing-inspect==0.9.0",
    ],
    "verifiers": [
        "verifiers==0.4.0",
        "aiofiles==25.1.0",
        "anthropic==2.14.0",
        "antlr4-python3-runtime==4.13.2",
        "connectrpc==0.11.1",
        "docstring_parser==0.18.0",
        "latex2sympy2-extended==1.11.0",
        "math-verify==0.9.0",
        "opentelemetry-api==1.45.2",
        "prime-pydantic-config==0.4.3",
        "prime-sandboxes==0.5.1",
        "protobuf-py==0.1.1",
        "protobuf-py-ext==0.1.1",
        "pyqwest==0.12.0",
        "renderers==0.1.12",
        "tomli-w==1.2.0",
    ],
    "verl": [
        "verl==0.9.1",
        "antlr4-python3-runtime==4.9.3",
        "codetiming==1.4.0",
        "hydra-core==1.3.8",
        "msgpack==1.2.4",
        "omegaconf==2.3.1",
        "pylatexenc==2.11",
        "pyvers==0.2.3",
        "ray==2.60.0",
        "tensordict==0.15.3",
        "torchdata==0.11.0",
    ],
}
CACHE = Path(__file__).parents[3] / ".frameworks"


def install(name: str) -> Path:
    """Return the folder with the packages of one framework; install them once.

    Args:
        name: a key of `PINS`.

    Raises:
        subprocess.SubprocessError: pip cannot install them.
    """
    digest = hashlib.sha256(repr((sys.version, PINS[name])).encode()).hexdigest()[:12]
    directory = CACHE / f"{name}-{digest}"
    if not directory.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{folder}/packages"]
            # NeMo-Gym asks for Python 3.12; its agent runs with 3.11. Of most packages, few modules are imported.
            pip += ["--ignore-requires-python", "--no-compile"]
            subprocess.run([*pip, *PINS[name]], check=True, capture_output=True, timeout=500)
            (Path(folder) / "packages").rename(directory)
    return directory
