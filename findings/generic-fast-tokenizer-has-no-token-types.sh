#!/usr/bin/env bash
# transformers 5.19.0, tokenizers 0.23.3: the class name beside a tokenizer.json decides whether a BERT reads a pair as
# two segments or as one.
#
# The post-processor in tokenizer.json sets type 1 for the second text. A tokenizer of class BertTokenizer returns these
# token_type_ids. PreTrainedTokenizerFast, with the very same file, does not return them, since they are not in its
# model_input_names. A BERT then takes zeros for all tokens: a cross-encoder trained or served so sees one segment.
# Seen: BertTokenizer returns token_type_ids [0, 0, 0, 1, 1], PreTrainedTokenizerFast returns none; equal input_ids.
# With an empty second text neither makes a pair: tokenizer("an", "") gives the ids of tokenizer("an").
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.19.0 tokenizers==0.23.3 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import json
import pathlib

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "an", "b"]
law = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
law.normalizer, law.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
law.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
law.add_special_tokens(words[:5])


def load(kind):
    folder = pathlib.Path(kind)
    folder.mkdir()
    law.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **names}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return AutoTokenizer.from_pretrained(folder)


bert, generic = load("BertTokenizer"), load("PreTrainedTokenizerFast")
pair = bert("an", "b"), generic("an", "b")
print("BertTokenizer          ", dict(pair[0]))
print("PreTrainedTokenizerFast", dict(pair[1]))
assert pair[0]["input_ids"] == pair[1]["input_ids"] == law.encode("an", "b").ids
assert pair[0]["token_type_ids"] == law.encode("an", "b").type_ids == [0, 0, 0, 1, 1]
assert "token_type_ids" not in pair[1]
assert bert("an", "")["input_ids"] == generic("an", "")["input_ids"] == bert("an")["input_ids"]
print("as described")
PY
