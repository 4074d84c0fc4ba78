"""Advise how to find the value of a key that no file of a checkpoint makes certain."""

from collections.abc import Mapping

_ADVICE: Mapping[str, str] = {
    "kind": (
        "`preference` for a head trained on pairs of completions (Bradley-Terry: TRL's RewardTrainer, OpenRLHF, "
        "Skywork); `absolute` for one trained on labels in 0..1, so that the sigmoid of its logit is a quality"
    ),
    "eos": (
        "`template` if the chat template itself ends a completion with the token that training saw there (ChatML, "
        "Llama 3; TRL on conversations); `append` if training put the tokenizer's EOS behind the text (OpenRLHF; TRL "
        "on plain text). To find out, compare `ids` of /v1/render with the ids that the trainer's tokenizer gave"
    ),
    "unfinished": (
        "your choice for completions that a length limit cut off (`finish_reason: length`): `error` refuses such an "
        "item, `score` scores it without an end of turn. Choose `error` if training saw only finished completions"
    ),
    "score_position": (
        "the tokens that the head reads: `last_non_pad_id` for …ForSequenceClassification (TRL), `last_token` for "
        "OpenRLHF and LLaMA-Factory, `pooler` or `first_token` for encoders, `steps` for process rewards; with keys "
        "`steps` and `aggregate`, `completion_tokens` for `head.likelihood`. /v1/render shows which tokens are read"
    ),
    "head": (
        "what the template prints between prompt and completion, as text; the gate reads its first token. For Llama 3 "
        r'`{gate: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"}`, for Gemma 2 '
        r'`{gate: "<end_of_turn>\n<start_of_turn>model\n"}`'
    ),
    "steps": (
        "how the steps of a completion are separated and printed, as `{delimiter: ..., token: ...}`; "
        "docs/checkpoints.md has the rules of known process reward models"
    ),
    "aggregate": "your choice of the one logit of several steps: the lowest, the last, the mean, or the product",
    "token_types": (
        "`second_after_sep` if the head was trained on tokenizer(prompt, completion), as BERT cross-encoders are; "
        "`zero` if it was trained on tokenizer(text)"
    ),
    "pad_token_id": "the id of the pad that the head was trained with; TRL takes the tokenizer's pad, else its EOS",
    "max_length": "the most tokens of prompt and completion together; no more than the model was trained with",
    "template": "the path of a Jinja file: the chat template that the model was trained with",
    "output": (
        "the output to read, from 0 or as `id2label` names it; `[I, J]` for the difference of two, as `[1, 0]` for the "
        "softmax of two labels. For several outputs, copy the signal"
    ),
    "head.tokens": (
        "the token whose logit is the reward, or two for the difference of their logits. If this is only the base of a "
        "LoRA reward model, remove `head` and declare the `adapter`. To score without a trained head, declare "
        "`head: {likelihood: sum}`"
    ),
    "code": (
        "`ignore` if the remote code that config.json names (`auto_map`) computes what transformers' own model "
        "computes; that code is never run"
    ),
    "quantization": (
        "the format that `config.json` names; the weights become plain weights of `dtype` at the start, and take its "
        "memory"
    ),
    "gguf_file": "the file that has the weights; they become plain weights of `dtype` at the start",
    "dtype": "the dtype of the base's weights in memory; heads always compute in float32",
    "compute": "the numbers in which the base computes; `auto` takes what this machine computes fastest and exactly",
    "default": "the signal or blend that answers requests which name none",
}


def get_advice(key: str) -> str:
    """Return one line on the meaning of a key's values and how to find the right one; "" for keys without advice."""
    return _ADVICE.get(key, "")
