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
    "openrlhf": ["openrlhf==0.11.2", "pylatexenc==2.11"],
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
            subprocess.run([*pip, *PINS[name]], check=True, capture_output=True, timeout=500)
            (Path(folder) / "packages").rename(directory)
    return directory
