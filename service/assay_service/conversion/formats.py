"""Know the reward-model classes that publish checkpoints of their own, by their configurations, without torch.

Each class reads its head at one place, and some change the head's output afterwards. Sources: the classes of UltraRM,
Eurus, Athene, Starling and Open-Assistant as their model cards and RewardBench publish them, and [SafeRLHF].
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assay_service.errors import StartError
from assay_service.scoring.architectures import read_class
from assay_service.scoring.manifest import EosPolicy, ScorePosition

OASST_TYPE = "gpt_neox_reward_model"
# Keys that belong to a foreign class. Their effect is in the converted head, so that nobody may apply them again.
_CLASS_KEYS = ("auto_map", "pooling", "score_dim", "score_type", "do_normalize", "normalizer_type", "momentum")
_SCORE_MODEL = re.compile(r"^\w+ForScore$")
_ATHENE = ("AtheneForSequenceClassification", "CustomAutoModelForSequenceClassification")
# A reserved token of Llama 3, at which Athene's code reads the head.
_ATHENE_END_ID = 128003
_POOLINGS: Mapping[object, ScorePosition] = {"mean": "mean", "last": "last_token"}

NormalizeFunction = Literal["affine", "scale", "identity"]
_NORMALIZERS: Mapping[str, NormalizeFunction] = {"reward": "affine", "cost": "scale", "critic": "identity"}


@dataclass(frozen=True, slots=True)
class Format:
    """What a class does with its base's hidden states.

    Attributes:
        name: name of the class, for messages.
        head: module of its head; None for any name that is known.
        position: the tokens that the head reads; None where the class does not decide it.
        normalize: normalization of the head's output; None where there is none.
        end_id: id of the token that must end every text; None where there is none.
        eos: origin of the end of turn, where the class decides it.
    """

    name: str
    head: str | None = None
    position: ScorePosition | None = None
    normalize: NormalizeFunction | None = None
    end_id: int | None = None
    eos: EosPolicy | None = None


def recognize(config: Mapping[str, Any]) -> Format:
    """Return the format of a checkpoint by its `config.json`.

    Raises:
        StartError: a key of the class has a value that the class does not know, or the model has several outputs.
    """
    name = read_class(config) or "a class without a name"
    if config.get("model_type") == OASST_TYPE or name == "GPTNeoXRewardModel":
        pooling = config.get("pooling") or "last"
        if pooling not in _POOLINGS:
            raise StartError(
                f"config.json: pooling {pooling!r} is not known; set the one that {name} was trained with, `mean` or "
                "`last`"
            )
        return Format(name, "out_proj", _POOLINGS[pooling])
    if name in {"LlamaRewardModel", "EurusRewardModel"}:
        return Format(name, "regression_head", "last_token")
    if name in _ATHENE:
        return Format(name, "v_head", "last_token", end_id=_ATHENE_END_ID, eos="template")
    # By the ending of the name, because safe-rlhf has one such class for each architecture.
    if _SCORE_MODEL.match(name):
        return Format(name, "score_head", "last_token", _read_normalizer(config))
    return Format(name)


def build_config(config: Mapping[str, Any], native_class: str | None) -> dict[str, Any]:
    """Return `config.json` for transformers' own class of the architecture, without the keys of the foreign one.

    Args:
        config: `config.json` of the source, with a model type that is served.
        native_class: transformers' classifier that reads the head as it is written; None if there is none.
    """
    # safe-rlhf writes its mean as a list; OpenRLHF's is a number, which `moments: config` reads.
    foreign = {*_CLASS_KEYS, *(key for key in ("mean", "var") if isinstance(config.get(key), list))}
    if _SCORE_MODEL.match(read_class(config)):
        foreign |= {"bias", "mean", "var"}
    kept = {key: value for key, value in config.items() if key not in {*foreign, "value_head_prefix", "architectures"}}
    # transformers takes the number of outputs from the labels, and would make a new head with two.
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return kept | ({} if native_class is None else {"architectures": [native_class], **labels})


def advise_position(head: str, names: Mapping[str, object]) -> str:
    """Return where trainers read a head whose class `config.json` does not name.

    Args:
        head: name of the head's weight in the source.
        names: names of all tensors of the source.
    """
    # The second spelling is DeepSpeed-Chat's own; checkpoints have it.
    if any(name.startswith(("rwtransformer.", "rwtranrsformer.")) for name in names):
        return "DeepSpeed-Chat reads the token before the first pad: last_non_pad_id, with --pad-token-id"
    if head.endswith("v_head.weight") and any(name.startswith("transformer.") for name in names):
        return (
            "Starling and trlx read the token before the first pad: last_non_pad_id, with --pad-token-id; without pads "
            "in the text that is last_token"
        )
    return (
        "TRL's value heads, LLaMA-Factory and OpenRLHF read the last token: last_token; a process reward model is read "
        "at its steps: steps"
    )


def _read_normalizer(config: Mapping[str, Any]) -> NormalizeFunction | None:
    """Return how a score model of safe-rlhf normalizes its output; None if it does not."""
    if config.get("score_dim", 1) != 1:
        raise StartError(
            f"config.json: score_dim is {config['score_dim']}, but a signal has one output; save the score_head with "
            "the one row to serve, and set score_dim to 1"
        )
    kind = config.get("score_type", "reward")
    if kind not in _NORMALIZERS:
        raise StartError(
            f"config.json: score_type {kind!r} is not known; set the one of training, {' or '.join(_NORMALIZERS)}"
        )
    return _NORMALIZERS[kind] if config.get("do_normalize", False) else None
