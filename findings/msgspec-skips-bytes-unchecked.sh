#!/usr/bin/env bash
# msgspec 0.22.0: the JSON decoder does not check that a field which the struct does not have is UTF-8.
#
# JSON text must be UTF-8 (RFC 8259). msgspec refuses other bytes in a field that it reads. It accepts them in a field
# that it skips, where json and orjson refuse the whole text. A client that decodes answers into structs therefore
# accepts a damaged answer, unless it decodes the bytes to text first.
# Seen: known field ValidationError or DecodeError, unknown field accepted; json and orjson refuse both.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet msgspec==0.22.0 orjson==3.11.4 2>/dev/null
venv/bin/python - <<'PY'
import json

import msgspec
import orjson


class Answer(msgspec.Struct):
    score: float
    model: str = ""


def accepts(decode, body: bytes) -> bool:
    try:
        decode(body)
    except (ValueError, msgspec.MsgspecError):
        return False
    return True


read = msgspec.json.Decoder(Answer).decode
known, unknown = b'{"score": 1.5, "model": "\xff"}', b'{"score": 1.5, "note": "\xff"}'
seen = {name: (accepts(f, known), accepts(f, unknown)) for name, f in (("msgspec", read), ("json", json.loads), ("orjson", orjson.loads))}
print(seen)
assert seen == {"msgspec": (False, True), "json": (False, False), "orjson": (False, False)}, seen
print("as described")
PY
