#!/usr/bin/env bash
# transformers 5.19.0 on a folder of transformers 4.57.1: a pad token that was set and saved is gone when the tokenizer
# is loaded again.
#
# Version 5 writes special tokens to tokenizer_config.json only, and without added_tokens_decoder. A configuration
# without that key makes it read special_tokens_map.json, too, and that file wins. save_pretrained neither updates nor
# removes the one that version 4 wrote. So whoever opens an older checkpoint, sets pad_token and saves to the same folder
# gets the old pad back. With a pad that equals EOS, heads that read the last token other than the pad skip the EOS
# again. Nothing is raised or printed.
# Seen: pad "<pad>" in tokenizer_config.json, "<eos>" after loading, "<pad>" once special_tokens_map.json is deleted.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv old
python3 -m venv new
old/bin/pip install --quiet transformers==4.57.1 2>/dev/null
new/bin/pip install --quiet transformers==5.19.0 tokenizers==0.23.3 2>/dev/null
old/bin/python - 2>/dev/null <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = ["<unk>", "<pad>", "<eos>", "an", "b"]
law = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
law.pre_tokenizer = pre_tokenizers.Whitespace()
law.add_special_tokens(words[:3])
names = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<eos>"}
PreTrainedTokenizerFast(tokenizer_object=law, **names).save_pretrained("checkpoint")
PY
new/bin/python - 2>/dev/null <<'PY'
import json
import pathlib

from transformers import AutoTokenizer

folder = pathlib.Path("checkpoint")
tokenizer = AutoTokenizer.from_pretrained(folder)
before = tokenizer.pad_token
tokenizer.pad_token = "<pad>"
tokenizer.save_pretrained(folder)
saved = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
loaded = AutoTokenizer.from_pretrained(folder).pad_token
(folder / "special_tokens_map.json").unlink()
without = AutoTokenizer.from_pretrained(folder).pad_token
print(f"before {before}, saved {saved}, loaded {loaded}, loaded without special_tokens_map.json {without}")
assert (before, saved, loaded, without) == ("<eos>", "<pad>", "<eos>", "<pad>")
print("as described")
PY
