#!/usr/bin/env bash
# transformers 5.19.0, tokenizers 0.23.3: PreTrainedTokenizerFast changes the ids of its own tokenizer.json.
#
# Naming an unk_token (as every BERT-like tokenizer_config.json does) adds it to the tokenizer as a special token. This
# happens even where tokenizer.json has it as a vocabulary entry only. Text that holds the characters "[UNK]" is then one token
# instead of its pieces, and the text around it is split at that place. tokenizers alone gives the pieces.
# Seen: "an [UNK] b" is ['an', '[UNK]', 'b'] by transformers and ['an', '[', 'un', '##k', ']', 'b'] by tokenizers.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.19.0 tokenizers==0.23.3 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import json
import pathlib

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = ["[UNK]", "[PAD]", "an", "b", "[", "]", "un", "##k"]
law = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
law.normalizer, law.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
folder = pathlib.Path("tokenizer")
folder.mkdir()
law.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]", "pad_token": "[PAD]"}))
text = "an [UNK] b"
ours = PreTrainedTokenizerFast.from_pretrained(folder).tokenize(text)
file = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).tokens
print("transformers", ours)
print("tokenizers  ", file)
assert ours == ["an", "[UNK]", "b"]
assert file == ["an", "[", "un", "##k", "]", "b"]
print("as described")
PY
