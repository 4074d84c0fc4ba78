"""Say how to find out the value of a key that no file of a checkpoint makes certain."""

from collections.abc import Mapping

_ADVICE: Mapping[str, str] = {
    "kind": (
        "`preference` for a head trained on pairs of replies (Bradley-Terry: TRL's RewardTrainer, OpenRLHF, Skywork); "
        "`absolute` for one trained on labels in 0..1, whose sigmoid is a quality"
    ),
    "eos": (
        "`template` if the chat template itself ends a reply with the token that training saw there (ChatML, Llama 3; "
        "TRL on conversations); `append` if training put the tokenizer's EOS behind the text (OpenRLHF; TRL on plain "
        "text). To find out, look at `ids` in /v1/render and compare them with the trainer's"
    ),
    "unfinished": (
        "your choice for replies that a length limit cut off (`finish_reason: length`): `error` refuses such an item, "
        "`score` scores it without an end of turn; `error` where the head was trained on finished replies only"
    ),
    "score_position": (
        "the token that the head reads: `last_non_pad_id` for …ForSequenceClassification (TRL), `last_token` for "
        "OpenRLHF and LLaMA-Factory, `pooler` or `first_token` for encoders. /v1/render shows which tokens are read"
    ),
    "token_types": (
        "`second_after_sep` if it was trained on tokenizer(prompt, reply), as BERT cross-encoders are; `zero` if on "
        "tokenizer(text)"
    ),
    "pad_token_id": "the id of the pad that the head was trained with; TRL takes the tokenizer's pad, else its EOS",
    "max_length": "tokens of prompt and completion together, at most what the model was trained with",
    "template": "the path of a Jinja file: the chat template that the model was trained with",
    "dtype": "what the base computes in; heads always compute in float32",
    "default": "the signal or blend that answers requests which name none",
}


def advice(key: str) -> str:
    """Return one line on what the values of a key mean and how to find out which is right; "" for other keys."""
    return _ADVICE.get(key, "")
