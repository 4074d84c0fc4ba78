"""Decide the keys of one signal.

A declared value comes first, then the value in the checkpoint's manifest, then what its other files make certain.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from assay_service.advice import get_advice
from assay_service.errors import Problems, StartError
from assay_service.scoring.architectures import (
    ARCHITECTURES,
    count_token_types,
    find_longest_scaled,
    find_longest_sequence,
    find_pooler,
)
from assay_service.scoring.blend import Moments
from assay_service.scoring.compute import Compute, Dtype, check_compute
from assay_service.scoring.manifest import (
    REASONING_TAGS,
    EosPolicy,
    Manifest,
    Reasoning,
    ScorePosition,
    StepRules,
    TokenTypes,
    Unfinished,
)
from assay_service.scoring.pads import Pads
from assay_service.scoring.reading import Aggregate
from assay_service.scoring.rules import RenderRules
from assay_service.settings import list_allowed_values
from assay_service.signal_files import SignalFiles
from assay_service.signal_settings import SignalSettings

DTYPES = ("float32", "bfloat16", "float16")

_Claim = TypeVar("_Claim")


def decide_rules(settings: SignalSettings, located: SignalFiles, template: str) -> RenderRules:
    """Return the rules by which a signal turns text into token ids.

    Args:
        settings: settings of the signal in the configuration.
        located: files of the signal.
        template: Jinja source of its chat template.

    Raises:
        StartError: a key is missing or wrong; the error lists all problems by key.
    """
    claims, problems = located.claims, Problems()
    with problems.collected():
        max_length = _decide_max_length(settings, claims, located.config)
    with problems.collected():
        position, pad_token_id = _decide_position_and_pad(settings, located)
        _check_vllm(settings, position)
    with problems.collected():
        eos: EosPolicy = settle("eos", settings.eos, claims.eos)
    with problems.collected():
        # It is the operator's policy, so a declared value may differ from the manifest's.
        unfinished: Unfinished = settle("unfinished", settings.unfinished or claims.unfinished, None)
    with problems.collected():
        types = _decide_token_types(settings, claims, located.config)
    with problems.collected():
        reasoning, tags = decide_reasoning(settings, claims)
    with problems.collected():
        steps = _decide_steps(settings, claims)
    problems.raise_any()
    return RenderRules(
        template=template,
        max_length=max_length,
        score_position=position,
        eos=eos,
        unfinished=unfinished,
        pad_token_id=pad_token_id,
        dropped_content=settings.dropped_content,
        control_tokens=settings.control_tokens,
        token_types=types,
        reasoning=reasoning,
        reasoning_tags=tags,
        steps=steps,
        neutral_prompt=settings.neutral_prompt,
    )


def settle(key: str, declared: _Claim | None, claimed: _Claim | None, inferred: _Claim | None = None) -> _Claim:
    """Return the value of `key`: declared and claimed values must agree, and an inferred value comes last.

    Args:
        key: name of the key, for errors.
        declared: value in the configuration.
        claimed: value in the checkpoint's manifest.
        inferred: value that the checkpoint's other files make certain.

    Raises:
        StartError: the declared and the claimed value differ, or all three are None.
    """
    if declared is not None and claimed is not None and declared != claimed:
        raise StartError(
            f"{key}: declared {declared!r}, but the checkpoint's manifest says {claimed!r}; remove the key"
        )
    for value in (declared, claimed, inferred):
        if value is not None:
            return value
    values = f", one of {', '.join(allowed)}" if (allowed := list_allowed_values(key)) else ""
    raise StartError(f"{key}: declare it{values}; no file of the checkpoint says it: {get_advice(key)}")


def decide_dtype(config: Mapping[str, Any]) -> Dtype:
    """Return the checkpoint's own dtype; float32 where `config.json` names none.

    Raises:
        StartError: the dtype is not one that is served.
    """
    # transformers 5 writes `dtype`, older versions wrote `torch_dtype`.
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise StartError(
            f"dtype: declare it, one of {', '.join(DTYPES)}; config.json says {dtype!r}, which is not served"
        )
    return cast("Dtype", dtype)


def decide_numbers(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any]) -> tuple[Dtype, Compute]:
    """Return the dtype of the base's weights, and the numbers in which it computes.

    Raises:
        StartError: one of them is not served, or they do not fit each other, the manifest or the engine.
    """
    dtype = settings.dtype or decide_dtype(config)
    compute: Compute = settle("compute", settings.compute, claims.compute, "auto")
    check_compute(compute, dtype, settings.engine)
    return dtype, compute


def decide_moments(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any]) -> Moments | None:
    """Return mean and standard deviation of the logits; None where one of the two is not known.

    Raises:
        StartError: `moments: config` is declared beside mean or std, or `config.json` has no usable ones.
    """
    if settings.moments == "config":
        return _read_moments(settings, config)
    # Both are the operator's policy, so a declared value replaces the manifest's.
    mean = claims.mean if settings.mean is None else settings.mean
    std = claims.std if settings.std is None else settings.std
    return None if mean is None or std is None else Moments(mean, std)


def _read_moments(settings: SignalSettings, config: Mapping[str, Any]) -> Moments:
    """Return the moments that OpenRLHF writes into `config.json`; other trainers use these keys for other things."""
    if settings.mean is not None or settings.std is not None:
        raise StartError("moments: `config` and a declared mean or std contradict each other; remove one of them")
    mean, std = config.get("mean"), config.get("std")
    numbers = [n for n in (mean, std) if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]
    if len(numbers) < 2 or numbers[1] <= 0:
        raise StartError(
            f"moments: config.json has mean {mean!r} and std {std!r}, but needs a finite number and a positive one; "
            "remove `moments`, or declare `mean` and `std`"
        )
    return Moments(float(numbers[0]), float(numbers[1]))


def _decide_max_length(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any]) -> int:
    """Return the length limit: declared, claimed, or `max_position_embeddings`.

    A declared limit may exceed `max_position_embeddings` as far as a scaling of rotary positions allows.
    """
    positions = find_longest_sequence(config)
    max_length = settings.max_length or claims.max_length or positions
    if not isinstance(max_length, int):
        raise StartError(
            f"max_length: declare it; neither the manifest nor config.json has it: {get_advice('max_length')}"
        )
    reach = None if positions is None else max(positions, find_longest_scaled(config) or 0)
    # A base without `max_position_embeddings` sets no limit of its own.
    longest = min(claims.max_length or max_length, reach or max_length)
    if max_length > longest:
        raise StartError(f"max_length: {max_length} is more than the checkpoint's {longest}; declare at most that")
    return max_length


def _check_vllm(settings: SignalSettings, position: ScorePosition) -> None:
    """Refuse a score position that vLLM does not read: its classifiers read the last token."""
    if settings.engine == "vllm" and position not in ("last_token", "last_non_pad_id"):
        raise StartError(
            f"score_position: {position} is not read by `engine: vllm`, which reads the last token; serve the signal "
            "without `engine: vllm`, on one device"
        )


def _decide_token_types(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any]) -> TokenTypes | None:
    """Return the rule for token types; None where the base has only one type.

    Nothing in a checkpoint's files shows whether it was trained on pairs of segments, and a wrong rule gives wrong
    scores. So the rule is never inferred.
    """
    types = count_token_types(config)
    if types < 2:
        if settings.token_types == "second_after_sep":
            raise StartError("token_types: the base has only one token type; remove `token_types: second_after_sep`")
        return None
    if settings.token_types is None and claims.token_types is None:
        raise StartError(
            f"token_types: declare it; the base has {types} token types (type_vocab_size), and no file says which "
            f"of them the head was trained with: {get_advice('token_types')}"
        )
    return settle("token_types", settings.token_types, claims.token_types)


def decide_reasoning(settings: SignalSettings, claims: Manifest) -> tuple[Reasoning, tuple[str, str]]:
    """Return the rule for the reasoning of completions, and its tags.

    It is the operator's policy, so a declared value may differ from the manifest's. Only reasoning that training never
    showed to the model cannot be kept.

    Raises:
        StartError: such reasoning is to be kept, or the tags are equal, not needed or not those of training.
    """
    reasoning: Reasoning = settings.reasoning or claims.reasoning or "keep"
    if reasoning == "keep" and claims.reasoning in ("strip", "error"):
        raise StartError(
            f"reasoning: declared 'keep', but the manifest says {claims.reasoning!r}, so the model was trained without "
            "reasoning; declare `strip` or `error`"
        )
    if reasoning == "keep" and settings.reasoning_tags is not None:
        raise StartError("reasoning_tags: remove it, or declare `reasoning: strip` or `error`; `keep` reads no tags")
    # A model that was trained with "keep" has read no tags, whatever its manifest says of them.
    claimed = None if claims.reasoning in (None, "keep") else claims.reasoning_tags
    tags = settle("reasoning_tags", settings.reasoning_tags, claimed, REASONING_TAGS)
    if tags[0] == tags[1]:
        raise StartError("reasoning_tags: both are the same; declare an opening and a closing tag")
    return reasoning, tags


def _decide_steps(settings: SignalSettings, claims: Manifest) -> StepRules | None:
    """Return the rules for steps; None unless the score position is "steps"."""
    if (settings.score_position or claims.score_position) == "steps":
        return settle("steps", settings.steps, claims.steps)
    if settings.steps is not None:
        raise StartError("steps: is only for `score_position: steps`; declare that, or remove the key")
    return None


def decide_aggregate(settings: SignalSettings, claims: Manifest) -> Aggregate | None:
    """Return the rule that makes one logit of several steps; None unless the score position is "steps".

    It is the operator's policy, so a declared value may differ from the manifest's.

    Raises:
        StartError: the rule is missing or not needed, or it is a product for a preference signal.
    """
    if (settings.score_position or claims.score_position) != "steps":
        if settings.aggregate is not None:
            raise StartError("aggregate: is only for `score_position: steps`; declare that, or remove the key")
        return None
    aggregate: Aggregate = settle("aggregate", settings.aggregate or claims.aggregate, None)
    if aggregate == "product" and (settings.kind or claims.kind) == "preference":
        raise StartError(
            "aggregate: a product is only for `kind: absolute`, because the "
            "sigmoid of a preference logit is not a probability; declare min, last or mean"
        )
    return aggregate


def _decide_position_and_pad(settings: SignalSettings, located: SignalFiles) -> tuple[ScorePosition, int | None]:
    """Return the position that the head reads, and the pad id; only `last_non_pad_id` skips pads."""
    claims = located.claims
    pads = Pads(located.config.get("pad_token_id"), located.base, located.adapters)
    claimed = claims.pad_token_id
    if claimed is None and claims.score_position is not None:
        # Such a manifest is that of `assay train reward`, which takes the pad token of the base's config.json.
        claimed = pads.config
    pad = claimed if settings.pad_token_id is None else settings.pad_token_id
    inferred = _infer_position(located.config, pads, pad) if located.is_classifier else None
    position: ScorePosition = settle("score_position", settings.score_position, claims.score_position, inferred)
    if position != "last_non_pad_id":
        if settings.pad_token_id is not None:
            raise StartError(f"pad_token_id: remove it; score_position {position} does not skip pads")
        return position, pads.config
    return position, pads.agreed() if pad is None else settle("pad_token_id", settings.pad_token_id, claimed)


def _infer_position(config: Mapping[str, Any], pads: Pads, pad: int | None) -> ScorePosition:
    """Return the position that transformers' own classifier of this architecture reads."""
    if (known := ARCHITECTURES.get(config.get("model_type", ""))) is not None and known.dense is not None:
        return find_pooler(config)
    # transformers reads the last token that is not a pad, or the last one where it knows no pad.
    return "last_token" if pad is None and not pads.known else "last_non_pad_id"
