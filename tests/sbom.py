"""Write the SBOM of this environment (CycloneDX), and check that it lists every installed package.

`make sbom` runs it, and `make check` too: the tool once took longer than anyone waited, and nobody noticed.
"""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs/sbom.json"
LIMIT_S = 300.0  # about 3 s of CPU; 40 s and more of it with rfc3987-syntax


def list_missing(sbom: str, installed: dict[NormalizedName, str]) -> list[str]:
    """Return the packages that an SBOM does not list in their installed version, as `name==version`.

    Args:
        sbom: the text of a CycloneDX file.
        installed: version by canonical name.
    """
    bom = json.loads(sbom)
    parts = [bom["metadata"]["component"], *bom["components"]]
    listed = {(canonicalize_name(part["name"]), part["version"]) for part in parts}
    return [f"{name}=={version}" for name, version in sorted(installed.items()) if (name, version) not in listed]


def main(tool: str) -> int:
    """Write `runs/sbom.json` and return the exit code: 1 if it is invalid, late, or lacks a package."""
    OUT.parent.mkdir(exist_ok=True)
    command = [tool, "environment", sys.executable, "--pyproject", str(ROOT / "pyproject.toml")]
    options = ["--validate", "--output-reproducible", "--output-file", str(OUT)]
    try:
        done = subprocess.run([*command, *options], check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"sbom: {tool} did not end within {LIMIT_S:.0f} s")
        return 1
    if done.returncode:
        return 1
    installed = {canonicalize_name(one.name): one.version for one in distributions()}
    missing = list_missing(OUT.read_text(), installed)
    print(
        *(f"sbom: {package} is installed, but not listed" for package in missing), sep="\n", end="\n" if missing else ""
    )
    print(f"sbom: {OUT.relative_to(ROOT)} lists {len(installed) - len(missing)} packages")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
