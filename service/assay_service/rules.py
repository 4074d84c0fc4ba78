"""How one signal is served: what is declared, else what its manifest claims, else what is certain. Pure."""

from collections.abc import Mapping
from typing import Any, TypeVar

from assay_service.errors import StartError
from assay_service.scoring.architectures import ARCHITECTURES, longest_sequence
from assay_service.scoring.manifest import Manifest, ScorePosition
from assay_service.scoring.mix import Moments
from assay_service.scoring.render import RenderRules
from assay_service.settings import SignalSettings

DTYPES = ("float32", "bfloat16", "float16")

_Claim = TypeVar("_Claim")


def render_rules(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any], template: str) -> RenderRules:
    """What the configuration, the manifest and, where it is certain, the architecture say about rendering."""
    positions = longest_sequence(config)
    max_length = settings.max_length or claims.max_length or positions
    if not isinstance(max_length, int):
        raise StartError("max_length: not declared, and neither the manifest nor config.json has it")
    longest = min(claims.max_length or max_length, positions or max_length)
    if max_length > longest:
        raise StartError(f"max_length: {max_length} is more than the checkpoint's {longest}")
    return RenderRules(
        template=template,
        max_length=max_length,
        score_position=settled("score_position", settings.score_position, claims.score_position, _position(config)),
        eos=settled("eos", settings.eos, claims.eos),
        unfinished=settled("unfinished", settings.unfinished or claims.unfinished, None),
        pad_token_id=config.get("pad_token_id"),
    )


def settled(key: str, declared: _Claim | None, claimed: _Claim | None, inferred: _Claim | None = None) -> _Claim:
    """The value of `key`: declared and claimed must agree, inference comes last."""
    if declared is not None and claimed is not None and declared != claimed:
        raise StartError(f"{key}: declared {declared!r}, but the checkpoint's manifest says {claimed!r}")
    for value in (declared, claimed, inferred):
        if value is not None:
            return value
    raise StartError(f"{key}: declare it; the checkpoint has no manifest that says it, and it cannot be inferred")


def _position(config: Mapping[str, Any]) -> ScorePosition | None:
    """Where transformers' own classifier of this architecture reads, if the checkpoint is one."""
    architecture = (config.get("architectures") or [""])[0]
    if not architecture.endswith("ForSequenceClassification"):
        return None
    if (known := ARCHITECTURES.get(config.get("model_type", ""))) is not None and known.dense is not None:
        return "pooler"
    return "last_token" if config.get("pad_token_id") is None else "last_non_pad_id"


def dtype_of(config: Mapping[str, Any]) -> str:
    """The checkpoint's own dtype; float32 where it names none."""
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise StartError(f"dtype: {dtype!r} is not served; declare float32, bfloat16 or float16")
    return str(dtype)


def moments_of(settings: SignalSettings, claims: Manifest) -> Moments | None:
    """Mean and std, declared or claimed; None where one of them is neither."""
    mean = claims.mean if settings.mean is None else settings.mean
    std = claims.std if settings.std is None else settings.std
    return None if mean is None or std is None else Moments(mean, std)
