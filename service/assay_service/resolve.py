"""Decide how every signal is served from the configuration and the checkpoints' JSON files, before torch is imported.

A value is what the configuration declares, else what the checkpoint's manifest claims, else what the checkpoint's own
files make certain. Where none of them says it, the service does not start. What both say must agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assay_service.errors import StartError
from assay_service.scoring import files, manifest
from assay_service.scoring.architectures import (
    ARCHITECTURES,
    architecture_of,
    longest_scaled,
    longest_sequence,
    token_types,
)
from assay_service.scoring.manifest import Kind, Manifest, ScorePosition, TokenTypes
from assay_service.scoring.mix import Moments
from assay_service.scoring.pads import Pads
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.template import read_template
from assay_service.settings import Settings, SignalSettings

DTYPES = ("float32", "bfloat16", "float16")

_Claim = TypeVar("_Claim")


@dataclass(frozen=True, slots=True)
class ResolvedSignal:
    """A signal with everything decided that needs no tensor.

    Attributes:
        settings: what the configuration declares.
        kind: what the logit means.
        base: directory of the base.
        model: the base as the configuration or the adapter names it.
        revision: commit, tag or branch of a hub id; None for files.
        adapter: directory of the LoRA adapter with its head; None serves the base's own head.
        tokenizer: directory that holds the tokenizer's files: the adapter's, if it brings one, else the base's.
        config: the base's `config.json`.
        dtype: what the base computes in.
        rules: how text becomes ids.
        moments: mean and standard deviation of the logits; None where they are not known.
        claims: the checkpoint's manifest.
    """

    settings: SignalSettings
    kind: Kind
    base: Path
    model: str
    revision: str | None
    adapter: Path | None
    tokenizer: Path
    config: Mapping[str, Any]
    dtype: str
    rules: RenderRules
    moments: Moments | None
    claims: Manifest


def resolve(settings: Settings) -> dict[str, ResolvedSignal]:
    """Return every signal of `settings`, resolved, by name.

    Raises:
        StartError: naming the signal and the key or file.
    """
    resolved = {}
    for name, signal in settings.signals.items():
        try:
            resolved[name] = _resolve_signal(signal, settings.directory)
        except StartError as error:
            raise StartError(f"signals.{name}: {error.message}") from error
    return resolved


def _resolve_signal(settings: SignalSettings, relative_to: Path) -> ResolvedSignal:
    adapter = None if settings.adapter is None else files.resolve(settings.adapter, None, relative_to)
    adapter_config = {} if adapter is None else files.read_config(adapter, files.ADAPTER_CONFIG)
    model, revision, base = _base(settings, adapter_config, adapter, relative_to)
    directory = adapter or base
    claims = manifest.read(directory)
    config = files.read_config(base)
    architecture_of(config, base)
    tokenizer = directory if (directory / "tokenizer.json").is_file() else base
    declared = None if settings.template is None else relative_to / Path(settings.template).expanduser()
    template = read_template(declared, directory, tokenizer)
    position, pad_token_id = _position_and_pad(
        settings,
        claims,
        config,
        Pads(config.get("pad_token_id"), base, adapter),
        is_classifier=_is_classifier(config, adapter_config),
    )
    return ResolvedSignal(
        settings=settings,
        kind=_settle("kind", settings.kind, claims.kind),
        base=base,
        model=model,
        revision=revision,
        adapter=adapter,
        tokenizer=tokenizer,
        config=config,
        dtype=settings.dtype or _dtype(config),
        rules=RenderRules(
            template=template,
            max_length=_max_length(settings, claims, config),
            score_position=position,
            eos=_settle("eos", settings.eos, claims.eos),
            unfinished=_settle("unfinished", settings.unfinished or claims.unfinished, None),
            pad_token_id=pad_token_id,
            token_types=_token_types(settings, claims, config),
        ),
        moments=_moments(settings, claims),
        claims=claims,
    )


def _base(
    settings: SignalSettings, adapter_config: Mapping[str, Any], adapter: Path | None, relative_to: Path
) -> tuple[str, str | None, Path]:
    """Return the base as it is named, its revision and its directory: declared, else named by the adapter."""
    if settings.base is not None or adapter is None:
        reference = settings.base or ""
        directory = files.resolve(reference, settings.revision, relative_to)
        if (directory / "config.json").is_file() and (directory / files.ADAPTER_CONFIG).is_file():
            raise StartError(
                f"{directory}: a base with an {files.ADAPTER_CONFIG} in it; declare the adapter as `adapter`"
            )
        return reference, settings.revision, directory
    reference = str(adapter_config.get("base_model_name_or_path") or "")
    if not reference:
        raise StartError(f"base: declare it; {adapter / files.ADAPTER_CONFIG} has no base_model_name_or_path")
    if reference.startswith(files.PACKAGE_SCHEME):  # would import a module that a checkpoint names
        raise StartError(f"base: declare `base: {reference}`; a package is taken from the configuration only")
    is_path = (adapter / Path(reference).expanduser()).is_dir()
    revision = settings.revision or (None if is_path else adapter_config.get("revision"))
    try:
        return reference, revision, files.resolve(reference, revision, adapter)
    except StartError as error:
        raise StartError(
            f"base: declare it; the adapter's base_model_name_or_path does not lead to it: {error.message}"
        ) from error


def _max_length(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any]) -> int:
    """Return the length limit: declared, claimed, or `max_position_embeddings`.

    A declared one may go beyond `max_position_embeddings` as far as a scaling of rotary positions says.
    """
    positions = longest_sequence(config)
    max_length = settings.max_length or claims.max_length or positions
    if not isinstance(max_length, int):
        raise StartError("max_length: declare it; neither the manifest nor config.json has it")
    reach = None if positions is None else max(positions, longest_scaled(config) or 0)
    longest = min(claims.max_length or max_length, reach or max_length)
    if max_length > longest:
        raise StartError(f"max_length: {max_length} is more than the checkpoint's {longest}; declare at most that")
    return max_length


def _token_types(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any]) -> TokenTypes | None:
    """Return how token types are set; None where the base has one type only.

    Nothing in a checkpoint's files says whether it was trained on pairs, and the other choice gives other scores.
    """
    types = token_types(config)
    if types < 2:
        if settings.token_types == "second_after_sep":
            raise StartError("token_types: the base has one token type only; remove `token_types: second_after_sep`")
        return None
    if settings.token_types is None and claims.token_types is None:
        raise StartError(
            f"token_types: declare it; the base has {types} token types (type_vocab_size), and no file says which the "
            "head was trained with: `second_after_sep` for tokenizer(prompt, reply), as BERT cross-encoders are "
            "trained, or `zero` for tokenizer(text)"
        )
    return _settle("token_types", settings.token_types, claims.token_types)


def _settle(key: str, declared: _Claim | None, claimed: _Claim | None, inferred: _Claim | None = None) -> _Claim:
    """Return the value of `key`: declared and claimed must agree, and an inferred value comes last."""
    if declared is not None and claimed is not None and declared != claimed:
        raise StartError(f"{key}: declared {declared!r}, but the checkpoint's manifest says {claimed!r}")
    for value in (declared, claimed, inferred):
        if value is not None:
            return value
    raise StartError(f"{key}: declare it; the checkpoint has no manifest that says it, and it cannot be inferred")


def _position_and_pad(
    settings: SignalSettings, claims: Manifest, config: Mapping[str, Any], pads: Pads, *, is_classifier: bool
) -> tuple[ScorePosition, int | None]:
    """Return which tokens the head reads, and the id that counts as padding, which only `last_non_pad_id` skips."""
    claimed = claims.pad_token_id
    if claimed is None and claims.score_position is not None:
        claimed = pads.config  # trained by `assay train reward`, which takes the pad of the base's config.json
    pad = claimed if settings.pad_token_id is None else settings.pad_token_id
    inferred = _position(config, pads, pad) if is_classifier else None
    position: ScorePosition = _settle("score_position", settings.score_position, claims.score_position, inferred)
    if position != "last_non_pad_id":
        if settings.pad_token_id is not None:
            raise StartError(f"pad_token_id: remove it; score_position {position} skips no pad")
        return position, pads.config
    return position, pads.agreed() if pad is None else _settle("pad_token_id", settings.pad_token_id, claimed)


def _position(config: Mapping[str, Any], pads: Pads, pad: int | None) -> ScorePosition:
    """Return where transformers' own classifier of this architecture reads."""
    if (known := ARCHITECTURES.get(config.get("model_type", ""))) is not None and known.dense is not None:
        return "pooler"
    return "last_token" if pad is None and not pads.known else "last_non_pad_id"


def _is_classifier(config: Mapping[str, Any], adapter_config: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint was trained as transformers' classifier of its architecture."""
    architecture = (config.get("architectures") or [""])[0]
    return architecture.endswith("ForSequenceClassification") or adapter_config.get("task_type") == "SEQ_CLS"


def _dtype(config: Mapping[str, Any]) -> str:
    """Return the checkpoint's own dtype; float32 where it names none."""
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise StartError(f"dtype: {dtype!r} is not served; declare float32, bfloat16 or float16")
    return str(dtype)


def _moments(settings: SignalSettings, claims: Manifest) -> Moments | None:
    """Return mean and standard deviation, declared or claimed; None where one of them is neither."""
    mean = claims.mean if settings.mean is None else settings.mean
    std = claims.std if settings.std is None else settings.std
    return None if mean is None or std is None else Moments(mean, std)
