"""Check the subjects of commits: `python -m tests.commits FILE`, or `python -m tests.commits FROM..TO`.

git calls the first form before each commit (`pre-commit install`). `.github/workflows` calls the second.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_CHARS = 72


def read_types() -> list[str]:
    """Return the types of commits that CONTRIBUTING.md lists."""
    listed = re.search(r"^- `type` is one of (.*?)\.", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    return re.findall(r"`(\w+)`", listed[1])


def find_fault(subject: str, types: Sequence[str]) -> str | None:
    """Return what is wrong with the subject of a commit; None if nothing is."""
    if subject.startswith("Merge "):  # git writes it
        return None
    if len(subject) > MOST_CHARS:
        return f"has {len(subject)} characters; at most {MOST_CHARS} fit"
    if not re.fullmatch(rf"({'|'.join(types)})\([a-z0-9_,-]+\)!?: \S.*[^\s.]", subject):
        return f"is not `type(scope): what changes for whom`, where type is one of {', '.join(types)}"
    return None


def read_subjects(given: str) -> list[str]:
    """Return the subject in the file of a commit's message, or the subjects of a range of commits.

    Raises:
        CalledProcessError: git does not know the range.
    """
    if Path(given).is_file():
        lines = [line for line in Path(given).read_text().splitlines() if not line.startswith("#")]
        return [next((line for line in lines if line.strip()), "")]
    log = ["git", "log", "--no-merges", "--format=%s", given]
    return subprocess.run(log, check=True, capture_output=True, text=True).stdout.splitlines()


def main(given: str) -> int:
    """Print the faults of all subjects; return 1 if there is one, else 0."""
    types = read_types()
    faults = [f"{subject!r} {fault}" for subject in read_subjects(given) if (fault := find_fault(subject, types))]
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
