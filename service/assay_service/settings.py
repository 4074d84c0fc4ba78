"""The configuration of a service: one frozen object, read from YAML, checked before anything is loaded."""

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assay_service.errors import StartError
from assay_service.scoring.manifest import (
    ControlTokenPolicy,
    DroppedContent,
    EosPolicy,
    Kind,
    ScorePosition,
    TokenTypes,
    Unfinished,
)
from assay_service.scoring.mix import Standardise

EMBEDDED = Path(__file__).parent / "embedded" / "service.yaml"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SignalSettings(_Frozen):
    """One served head. What is None is taken from the checkpoint's manifest, or inferred, or refuses to start.

    Attributes:
        kind: what the logit means.
        base: a path, `package:NAME`, or a hub id; None takes the one that the adapter's `adapter_config.json` names.
        revision: commit, tag or branch of a hub id.
        adapter: path of a LoRA adapter with its head; None serves the base's own head. A list is applied in order, each
            adapter trained on the base with those before it; the last one brings the head.
        adapter_base: the name by which the adapter knows its base, where that is another name for the same weights.
        dtype: what the base computes in; None means the checkpoint's own.
        device: as torch names it; None means CUDA where there is one.
        max_length: tokens of prompt and completion together.
        template: path of a Jinja chat template; None means the checkpoint's own.
        score_position: which tokens the head reads.
        eos: where the end of turn comes from.
        mean: of the logits, for blends that standardise.
        std: likewise.
        template_name: which of the checkpoint's named chat templates; None means the one called "default".
        dropped_content: whether an item is an error, or scored and reported, if the template leaves out a part of it.
        control_tokens: whether a control token in a message is an error, or is read as plain characters.
        unfinished: whether completions that were cut off are scored or are an error.
        pad_token_id: the id that `score_position: last_non_pad_id` skips.
        token_types: the types (segments) of tokens, for bases that tell several apart.
    """

    kind: Kind | None = None
    base: str | None = None
    revision: str | None = None
    adapter: str | Annotated[list[str], Field(min_length=1)] | None = None
    adapter_base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    max_length: int | None = Field(None, gt=0)
    template: str | None = None
    score_position: ScorePosition | None = None
    eos: EosPolicy | None = None
    mean: float | None = Field(None, allow_inf_nan=False)
    std: float | None = Field(None, gt=0, allow_inf_nan=False)
    unfinished: Unfinished | None = None
    template_name: str | None = None
    dropped_content: DroppedContent = "error"
    control_tokens: ControlTokenPolicy = "error"
    pad_token_id: int | None = Field(None, ge=0)
    token_types: TokenTypes | None = None

    @model_validator(mode="after")
    def _some_weights(self) -> "SignalSettings":
        if self.base is None and self.adapter is None:
            raise ValueError("base: declare the directory or hub id of the model, or an `adapter` that names its base")
        return self


class BlendSettings(_Frozen):
    """A named rule over signals.

    Attributes:
        weights: by signal; finite, not negative, not all zero.
        standardise: whether logits are standardised with their checkpoints' mean and std first.
    """

    weights: dict[Name, Weight] = Field(min_length=1)
    standardise: Standardise = "none"

    @model_validator(mode="after")
    def _some_weight(self) -> "BlendSettings":
        if sum(self.weights.values()) <= 0:
            raise ValueError("at least one weight must be above zero")
        return self


class Limits(_Frozen):
    """Caps. None of them can be lifted by a request.

    Attributes:
        max_body_bytes: of a request.
        max_items: items or completions in one request.
        max_item_chars: characters in one item, over all its messages; a bound on the work before tokens are known.
        max_batch_tokens: tokens computed in one forward; a shared prompt counts once.
        max_queue_tokens: tokens waiting; beyond it requests are refused with 429. One request is always admitted to an
            empty queue, so that none is unservable.
        cache_bytes: of remembered logits; 0 switches off that and computing once what two requests ask for at once.
    """

    max_body_bytes: int = Field(16 * 2**20, gt=0)
    max_items: int = Field(1024, gt=0)
    max_item_chars: int = Field(200_000, gt=0)
    max_batch_tokens: int = Field(4096, gt=0)
    max_queue_tokens: int = Field(1_000_000, gt=0)
    cache_bytes: int = Field(64 * 2**20, ge=0)


class Settings(_Frozen):
    """The whole configuration.

    Attributes:
        signals: by served name.
        blends: by served name; names are not those of signals.
        default: the signal or blend of a request that names none.
        limits: caps.
        directory: where relative paths start: the configuration file's folder.
    """

    signals: dict[Name, SignalSettings] = Field(min_length=1)
    blends: dict[Name, BlendSettings] = {}
    default: Name
    limits: Limits = Limits()
    directory: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _names_exist(self) -> "Settings":
        clash = self.signals.keys() & self.blends.keys()
        if clash:
            raise ValueError(f"{min(clash)!r} names a signal and a blend")
        if self.default not in self.signals.keys() | self.blends.keys():
            raise ValueError(f"default: {self.default!r} is neither a signal nor a blend")
        for name, blend in self.blends.items():
            unknown = blend.weights.keys() - self.signals.keys()
            if unknown:
                raise ValueError(f"blends.{name}.weights: {min(unknown)!r} is not a signal")
        return self


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As SafeLoader's, after a look at the keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> Settings:
    """Reads a configuration file.

    Raises:
        StartError: naming the file and the key.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
        if not isinstance(raw, dict):
            raise StartError(f"{path}: not a mapping")
        if "directory" in raw:
            raise StartError(f"{path}: directory: is the file's own folder and cannot be set")
        return Settings.model_validate({**raw, "directory": path.resolve().parent})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StartError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
