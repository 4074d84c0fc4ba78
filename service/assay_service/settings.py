"""The configuration of a service: one frozen object, read from YAML, checked before anything is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from assay_service.advice import advice
from assay_service.errors import StartError
from assay_service.scoring.blend import Standardise
from assay_service.scoring.manifest import (
    ControlTokenPolicy,
    DroppedContent,
    EosPolicy,
    Kind,
    ScorePosition,
    TokenTypes,
    Unfinished,
)
from assay_service.validation import (
    DEVICE_PATTERN,
    NAME_PATTERN,
    explain,
    key_of,
    listed,
    one_or_several,
    wrong_names,
    wrong_names_of,
)
from assay_service.yaml_file import read_yaml

EMBEDDED = Path(__file__).parent / "embedded" / "service.yaml"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
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
        template_name: which of the checkpoint's named chat templates; None means the one called "default".
        score_position: which tokens the head reads.
        pad_token_id: the id that `score_position: last_non_pad_id` skips.
        token_types: the types (segments) of tokens, for bases that tell several apart.
        eos: where the end of turn comes from.
        mean: of the logits, for blends that standardise.
        std: likewise.
        unfinished: whether completions that were cut off are scored or are an error.
        dropped_content: whether an item is an error, or scored and reported, if the template leaves out a part of it.
        control_tokens: whether a control token in a message is an error, or is read as plain characters.
    """

    kind: Kind | None = None
    base: str | None = None
    revision: str | None = None
    adapter: Annotated[str | list[str] | None, BeforeValidator(one_or_several)] = None
    adapter_base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = Field(None, pattern=DEVICE_PATTERN)
    max_length: int | None = Field(None, gt=0)
    template: str | None = None
    template_name: str | None = None
    score_position: ScorePosition | None = None
    pad_token_id: int | None = Field(None, ge=0)
    token_types: TokenTypes | None = None
    eos: EosPolicy | None = None
    mean: float | None = Field(None, allow_inf_nan=False)
    std: float | None = Field(None, gt=0, allow_inf_nan=False)
    unfinished: Unfinished | None = None
    dropped_content: DroppedContent = "error"
    control_tokens: ControlTokenPolicy = "error"

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
        default: the signal or blend of a request that names none; a single signal without blends is it by itself.
        limits: caps.
        directory: where relative paths start: the configuration file's folder.
    """

    signals: dict[Name, SignalSettings] = Field(min_length=1)
    blends: dict[Name, BlendSettings] = {}
    default: Name
    limits: Limits = Limits()
    directory: Path = Field(exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _take_the_only_signal(cls, raw: object) -> object:
        if isinstance(raw, dict) and raw.get("default") is None and not raw.get("blends"):
            signals = raw.get("signals")
            if isinstance(signals, dict) and len(signals) == 1:
                return {**raw, "default": next(iter(signals))}
        return raw

    @model_validator(mode="after")
    def _check_names(self) -> "Settings":
        wrong = wrong_names(self.signals, {n: b.weights for n, b in self.blends.items()}, self.default)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


@dataclass(frozen=True, slots=True)
class Parsed:
    """A configuration as far as it is right.

    Attributes:
        settings: the whole; None where anything is wrong.
        signals: the signals, without those of their keys that are wrong.
        problems: what is wrong, one line each, beginning with the key.
        reported: the keys that the problems are about, also those that a misspelt one was meant to be.
    """

    settings: Settings | None
    signals: Mapping[str, SignalSettings]
    problems: tuple[str, ...] = ()
    reported: frozenset[str] = frozenset()


def allowed_values(key: str) -> tuple[str, ...]:
    """Return the values that a key of a signal may have; none where they cannot be listed."""
    annotations: list[Any] = [SignalSettings.model_fields[key].annotation]
    values: list[str] = []
    for annotation in annotations:
        if get_origin(annotation) is Literal:
            values += get_args(annotation)
        else:
            annotations += get_args(annotation)
    return tuple(values)


def parse(raw: object, directory: Path) -> Parsed:
    """Check a configuration, and collect everything that is wrong with it.

    Args:
        raw: what the YAML file holds.
        directory: where relative paths start.
    """
    if not isinstance(raw, dict):
        return Parsed(None, {}, ("not a mapping of keys to values; it begins with `signals:`",))
    if "directory" in raw:
        return Parsed(None, {}, ("directory: is the file's own folder and cannot be set; remove it",))
    try:
        settings = Settings.model_validate({**raw, "directory": directory})
    except ValidationError as error:
        errors = error.errors(include_url=False)
        meant = {(*one["loc"][:-1], close) for one in errors if (close := _meant(one)) is not None}
        # Names are checked apart, so that they are also where something else is wrong.
        apart = {(), ("default",)} if raw.get("default") is None else {()}
        told = [
            one for one in errors if one["loc"] not in apart and not (one["type"] == "missing" and one["loc"] in meant)
        ]
        names = [] if ("default",) in meant else wrong_names_of(raw)
        reported = frozenset(_key(location) for location in [*(one["loc"] for one in told), *meant])
        return Parsed(None, _usable_signals(raw, errors), (*map(_problem, told), *names), reported)
    return Parsed(settings, settings.signals)


def read_settings(path: Path) -> Settings:
    """Read a configuration file.

    Raises:
        StartError: with everything that is wrong, by key.
    """
    parsed = parse(read_yaml(path), path.resolve().parent)
    if parsed.settings is None:
        raise StartError(*parsed.problems, source=str(path))
    return parsed.settings


def _problem(error: ErrorDetails) -> str:
    """Return one error of pydantic as a line: the key, what is wrong, what was given, and what to do."""
    location = error["loc"]
    if location[-1] == "[key]":
        key, name = _key(location[:-2]), repr(error["input"])[:80]
        return f"{key}: the name {name} must be 1 to 64 letters, digits, dots, underscores or hyphens, as text"
    key, text, last = _key(location), explain(error), str(location[-1])
    if error["type"] == "extra_forbidden":
        close = _meant(error)
        told = "." if close is None else f"; did you mean `{close}`?"
        return f"{key}: unknown key{told} Keys are {listed(_keys_at(location))}"
    if error["type"] == "missing":
        return f"{key}: is required" + (f": {advice(last)}" if advice(last) else "")
    given = error["input"]
    shown = f", not {given!r}" if isinstance(given, (str, int, float)) and len(repr(given)) <= 60 else ""
    return f"{key}: {text}{shown}" + (f": {advice(last)}" if error["type"] == "literal_error" and advice(last) else "")


def _meant(error: ErrorDetails) -> str | None:
    """Return the key that an unknown one is a misspelling of; None for other errors, or where no key is close."""
    if error["type"] != "extra_forbidden":
        return None
    close = get_close_matches(str(error["loc"][-1]), _keys_at(error["loc"]), n=1)
    return close[0] if close else None


def _key(location: tuple[int | str, ...]) -> str:
    """Return where an error is, in the form of those that the checkpoints' files give: "signals.rm: eos"."""
    if location[0] == "signals" and len(location) > 2:
        return f"{key_of(location[:2])}: {key_of(location[2:])}"
    return key_of(location)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known where an unknown one stands."""
    models: Mapping[tuple[int, int | str], type[BaseModel]] = {
        (3, "signals"): SignalSettings,
        (3, "blends"): BlendSettings,
        (2, "limits"): Limits,
    }
    model = models.get((len(location), location[0]), Settings)
    return [name for name in model.model_fields if name != "directory"]


def _usable_signals(raw: Mapping[str, Any], errors: Iterable[ErrorDetails]) -> dict[str, SignalSettings]:
    """Return the signals without their wrong keys, so that the rest of them can be checked as well."""
    given = raw.get("signals")
    wrong = {error["loc"][1:3] for error in errors if error["loc"][:1] == ("signals",)}
    usable = {}
    for name, signal in given.items() if isinstance(given, dict) else ():
        if not (isinstance(name, str) and isinstance(signal, dict)) or (name, "[key]") in wrong:
            continue
        right = {key: value for key, value in signal.items() if (name, key) not in wrong}
        try:
            usable[name] = SignalSettings.model_validate(right)
        except ValidationError:  # without a key that every signal must have
            continue
    return usable
