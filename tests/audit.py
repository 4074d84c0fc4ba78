"""Look up the pinned packages in the advisory database of PyPI, where it can be reached.

`make check` runs it. Without the database it prints that the audit was skipped, and why; pip-audit alone would report
"no known vulnerabilities" although it has looked at nothing.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

DATABASE = "https://pypi.org/pypi/pip/24.0/json"
TIMEOUT_S = 10.0
PINS = Path(__file__).parents[1] / "constraints.txt"


def explain_unreachable(address: str) -> str | None:
    """Return why the advisory database cannot be used; None if it can."""
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            body = json.load(answer)
    except (OSError, ValueError, urllib.error.URLError) as error:
        return f"{address} cannot be reached: {type(error).__name__}"
    return None if "vulnerabilities" in body else f"{address} answers without advisories"


def main(tool: str, address: str = DATABASE) -> int:
    """Run the audit and return the exit code: 1 if a pinned package has a known vulnerability, or was not looked up."""
    if (reason := explain_unreachable(address)) is not None:
        print(f"audit skipped: {reason}")
        return 0
    command = [tool, "--requirement", str(PINS), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        print(done.stderr, file=sys.stderr)
        return 1
    found = json.loads(done.stdout)["dependencies"]
    faults = [f"{one['name']} {one['version']}: {bad['id']}" for one in found for bad in one.get("vulns", [])]
    faults += [f"{one['name']}: not looked up: {one['skip_reason']}" for one in found if "skip_reason" in one]
    print(*faults, f"audited {len(found)} packages", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
