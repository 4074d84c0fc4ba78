"""Read the configuration of a service from YAML into one frozen object, checked before anything is loaded."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from assay_service.advice import get_advice
from assay_service.compat_settings import SCORE_KEY, CompatSettings, SlimeSettings, Wires, find_settings_class
from assay_service.errors import StartError
from assay_service.operation_settings import LifecycleSettings, SamplesSettings, TracingSettings
from assay_service.scoring.manifest import StepRules
from assay_service.signal_settings import (
    BlendSettings,
    Frozen,
    HeadSettings,
    LengthPenaltySettings,
    Name,
    SignalSettings,
)
from assay_service.validation import (
    explain,
    find_wrong_names,
    find_wrong_names_in,
    format_key,
    join_names,
)
from assay_service.yaml_file import read_yaml

EMBEDDED = Path(__file__).parent / "embedded" / "service.yaml"


class Limits(Frozen):
    """Limits of the service, which no request can raise.

    Attributes:
        max_body_bytes: most bytes of a request's body.
        max_items: most items or completions in one request.
        max_completions: most completions of one prompt in a request that has a single prompt.
        max_messages: most messages in one item.
        max_item_chars: most characters in one item, over all its messages; it bounds the work of tokenizing.
        max_request_tokens: most tokens of one request, over all its items and bases.
        max_batch_tokens: most tokens computed in one forward pass; a shared prompt counts once.
        max_queue_wait_s: estimated seconds of work before a request, beyond which it is refused with 429.
        max_queue_tokens: waiting tokens beyond which requests are refused with 429; an idle engine takes any request.
        max_queue_items: waiting items beyond which requests are refused with 429.
        cache_bytes: size of the cache of logits. 0 turns off the cache, and also the sharing of a sequence that two
            requests wait for at the same time.
        rendering_cache_bytes: size of the cache of rendered items, which are then not rendered again. 0 turns it off.
    """

    max_body_bytes: int = Field(16 * 2**20, gt=0)
    max_items: int = Field(1024, gt=0)
    max_completions: int = Field(1024, gt=0)
    max_messages: int = Field(1024, gt=0)
    max_item_chars: int = Field(200_000, gt=0)
    max_request_tokens: int = Field(2_000_000, gt=0)
    max_batch_tokens: int = Field(4096, gt=0)
    max_queue_wait_s: float = Field(3.0, gt=0, allow_inf_nan=False)
    max_queue_tokens: int = Field(4_000_000, gt=0)
    max_queue_items: int = Field(20_000, gt=0)
    cache_bytes: int = Field(64 * 2**20, ge=0)
    rendering_cache_bytes: int = Field(64 * 2**20, ge=0)


class TlsSettings(Frozen):
    """The files by which the service speaks HTTPS.

    Attributes:
        certificate: path of the certificate in PEM format, with the intermediate ones behind it.
        key: path of its private key in PEM format, without a password.
    """

    certificate: str
    key: str


class Settings(Frozen):
    """The whole configuration.

    Attributes:
        signals: settings of the signals by served name.
        blends: settings of the blends by served name; a blend and a signal never share a name.
        default: the signal or blend of a request that names none; a single signal without blends needs no `default`.
        limits: limits of the service.
        lifecycle: times after which the service is not ready, or ends.
        compat: settings of the compatible wires.
        playground: whether the service has a page at `/` for trying its signals in a browser.
        keys: path of the key file; None serves without keys.
        admin_root: directory below which the files of signals lie that requests add; None keeps the signals fixed.
        insecure: whether the service may listen on other addresses than loopback without keys.
        tls: files by which the service speaks HTTPS; None serves HTTP.
        tracing: collector of the spans of requests; None records no spans.
        samples: log of a share of the scored texts; None stores no text.
        directory: folder of the configuration file, at which relative paths start.
    """

    signals: dict[Name, SignalSettings] = Field(min_length=1)
    blends: Mapping[Name, BlendSettings] = {}
    default: Name
    limits: Limits = Limits()
    lifecycle: LifecycleSettings = LifecycleSettings()
    compat: CompatSettings = CompatSettings()
    playground: bool = True
    keys: str | None = None
    admin_root: str | None = None
    insecure: bool = False
    tls: TlsSettings | None = None
    tracing: TracingSettings | None = None
    samples: SamplesSettings | None = None
    directory: Path = Field(exclude=True)

    def find_path(self, path: str) -> Path:
        """Return a path of the configuration: `~` is the home directory, and relative ones start at `directory`."""
        return self.directory / Path(path).expanduser()

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
        wrong = find_wrong_names(self.signals, {n: b.weights for n, b in self.blends.items()}, self.default)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _check_admin(self) -> "Settings":
        if self.admin_root is not None and self.keys is None:
            raise ValueError("admin_root: anybody could add signals; declare `keys` (`--keys`), or remove it")
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> "Settings":
        slime = self.compat.get_wire("slime")
        if isinstance(slime, SlimeSettings) and slime.parts and SCORE_KEY in self.signals:
            raise ValueError(
                f"compat.wires.slime.parts: names the score `{SCORE_KEY}`, as a signal is named; rename the signal"
            )
        return self


@dataclass(frozen=True, slots=True)
class Parsed:
    """The result of checking a configuration, with the parts of it that are right.

    Attributes:
        settings: the whole configuration; None where anything is wrong.
        signals: the signals, without their wrong keys.
        problems: the errors, one line each, beginning with the key.
        reported: the keys that the problems are about, and also the keys that misspelled ones were meant to be.
    """

    settings: Settings | None
    signals: Mapping[str, SignalSettings]
    problems: tuple[str, ...] = ()
    reported: frozenset[str] = frozenset()


def list_allowed_values(key: str) -> tuple[str, ...]:
    """Return the values that a key of a signal may have; an empty tuple where they cannot be listed."""
    annotations: list[Any] = [SignalSettings.model_fields[key].annotation]
    values: list[str] = []
    for annotation in annotations:  # the loop also visits what it appends: the members of unions
        if get_origin(annotation) is Literal:
            values += get_args(annotation)
        else:
            annotations += get_args(annotation)
    return tuple(values)


def parse(raw: object, directory: Path) -> Parsed:
    """Check a configuration, and collect all its errors.

    Args:
        raw: content of the YAML file.
        directory: folder at which relative paths start.
    """
    if not isinstance(raw, dict):
        return Parsed(None, {}, ("is not a mapping of keys to values; begin it with `signals:`",))
    if "directory" in raw:
        return Parsed(None, {}, ("directory: cannot be set, because it is always the file's own folder; remove it",))
    try:
        settings = Settings.model_validate({**raw, "directory": directory})
    except ValidationError as error:
        errors = error.errors(include_url=False)
        meant = {(*e["loc"][:-1], key) for e in errors if (key := _find_meant_key(e)) is not None}
        # pydantic checks names only if all else is right, so `find_wrong_names_in` checks them and those are skipped.
        skipped = {(), ("default",)} if raw.get("default") is None else {()}
        kept = [e for e in errors if e["loc"] not in skipped and not (e["type"] == "missing" and e["loc"] in meant)]
        names = [] if ("default",) in meant else find_wrong_names_in(raw)
        reported = frozenset(_format_key(location) for location in [*(e["loc"] for e in kept), *meant])
        # An error of the whole configuration names its key itself.
        whole = [] if names else [str(e["ctx"]["error"]) for e in errors if e["loc"] == () and "ctx" in e]
        problems = (*map(_format_problem, kept), *names, *whole)
        return Parsed(None, _build_usable_signals(raw, errors), problems, reported)
    return Parsed(settings, settings.signals)


def read_settings(path: Path) -> Settings:
    """Read a configuration file.

    Raises:
        StartError: the configuration is wrong; the error lists all its problems by key.
    """
    parsed = parse(read_yaml(path), path.resolve().parent)
    if parsed.settings is None:
        raise StartError(*parsed.problems, source=str(path))
    return parsed.settings


def _format_problem(error: ErrorDetails) -> str:
    """Format an error of pydantic as a line: the key, the fault, the given value, and the remedy."""
    location = error["loc"]
    if location[-1] == "[key]":
        key, name = _format_key(location[:-2]), repr(error["input"])[:80]
        return f"{key}: the name {name} must be 1 to 64 letters, digits, dots, underscores or hyphens, as text"
    key, text, last = _format_key(location), explain(error), str(location[-1])
    if error["type"] == "extra_forbidden":
        close = _find_meant_key(error)
        question = "." if close is None else f"; did you mean `{close}`?"
        return f"{key}: unknown key{question} Keys are {join_names(_list_keys_at(location))}"
    if error["type"] == "missing":
        return f"{key}: is required" + (f": {get_advice(last)}" if get_advice(last) else "")
    given = error["input"]
    # Long values and whole mappings are not repeated: the key is enough to find them.
    shown = f", not {given!r}" if isinstance(given, (str, int, float)) and len(repr(given)) <= 60 else ""
    advice = get_advice(last) if error["type"] == "literal_error" else ""
    return f"{key}: {text}{shown}" + (f": {advice}" if advice else "")


def _find_meant_key(error: ErrorDetails) -> str | None:
    """Return the key that an unknown one is a misspelling of; None for other errors, or where no key is close."""
    if error["type"] != "extra_forbidden":
        return None
    close = get_close_matches(str(error["loc"][-1]), _list_keys_at(error["loc"]), n=1)
    return close[0] if close else None


def _format_key(location: tuple[int | str, ...]) -> str:
    """Format the location of an error as the errors about checkpoints' files have it: "signals.rm: eos"."""
    if location[0] == "signals" and len(location) > 2:
        return f"{format_key(location[:2])}: {format_key(location[2:])}"
    return format_key(location)


def _list_keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are allowed at the location of an unknown key."""
    models: Mapping[tuple[int, int | str], type[BaseModel]] = {
        (3, "signals"): SignalSettings,
        (3, "blends"): BlendSettings,
        (4, "signals"): HeadSettings if location[2:3] == ("head",) else StepRules,
        (4, "blends"): LengthPenaltySettings,
        (2, "limits"): Limits,
        (2, "lifecycle"): LifecycleSettings,
        (2, "tls"): TlsSettings,
        (2, "tracing"): TracingSettings,
        (2, "samples"): SamplesSettings,
        (2, "compat"): CompatSettings,
        (4, "compat"): find_settings_class(str(location[2])) if len(location) > 2 else CompatSettings,
    }
    if (len(location), location[0]) == (3, "compat"):
        return list(Wires.__annotations__)
    model = models.get((len(location), location[0]), Settings)
    return [name for name in model.model_fields if name != "directory"]


def _build_usable_signals(raw: Mapping[str, Any], errors: Iterable[ErrorDetails]) -> dict[str, SignalSettings]:
    """Build the signals without their wrong keys, so that their other keys can be checked as well."""
    given = raw.get("signals")
    wrong = {error["loc"][1:3] for error in errors if error["loc"][:1] == ("signals",)}
    usable = {}
    for name, signal in given.items() if isinstance(given, dict) else ():
        if not (isinstance(name, str) and isinstance(signal, dict)) or (name, "[key]") in wrong:
            continue
        right = {key: value for key, value in signal.items() if (name, key) not in wrong}
        with suppress(ValidationError):  # a key that every signal needs is missing
            usable[name] = SignalSettings.model_validate(right)
    return usable
