#!/usr/bin/env bash
# ruamel.yaml 0.19.1: the safe loader accepts a duplicate key in every mapping that also has a merge key.
#
# ruamel.yaml refuses duplicate keys by default, with DuplicateKeyError. YAML(typ="safe") does not do so in a mapping
# that holds `<<`, even where the merged mapping has no such key: the last value wins silently. YAML(typ="rt") refuses
# the same text. A configuration reader that relies on the default loses a value exactly where anchors are in use.
# Seen: safe {'a': 1, 'rate': 0.2}, round-trip DuplicateKeyError, safe without `<<` DuplicateKeyError.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet ruamel.yaml==0.19.1 2>/dev/null
venv/bin/python - <<'PY'
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError

PLAIN = "run: {rate: 0.1, rate: 0.2}"
MERGED = "shared: &shared {a: 1}\nrun: {<<: *shared, rate: 0.1, rate: 0.2}"


def read(typ: str, text: str) -> str:
    try:
        return str(dict(YAML(typ=typ, pure=True).load(text)["run"]))
    except DuplicateKeyError:
        return "DuplicateKeyError"


seen = {f"{typ} {name}": read(typ, text) for typ in ("safe", "rt") for name, text in (("plain", PLAIN), ("merged", MERGED))}
print(seen)
assert seen == {
    "safe plain": "DuplicateKeyError",
    "safe merged": "{'a': 1, 'rate': 0.2}",
    "rt plain": "DuplicateKeyError",
    "rt merged": "DuplicateKeyError",
}
print("as described")
PY
