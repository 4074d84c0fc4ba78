"""Find the keys that must be declared for a signal, because no file of its checkpoint says them; without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_service.errors import StartError
from assay_service.resolve import ResolvedSignal, resolve_signal
from assay_service.scoring import files, names
from assay_service.scoring.head_layouts import recognize_layout
from assay_service.scoring.language_models import is_language_model
from assay_service.scoring.manifest import StepRules
from assay_service.scoring.missing_head import explain_odd_head
from assay_service.scoring.quantization import list_gguf_files, read_method
from assay_service.scoring.template_files import NO_TEMPLATE
from assay_service.settings import list_allowed_values
from assay_service.signal_files import SignalFiles, locate
from assay_service.signal_settings import HeadSettings, SignalSettings

# Values to try for keys whose allowed values cannot be listed. A template is a file, for which there is none.
_TRIALS: Mapping[str, Any] = {
    "max_length": 1,
    "output": 0,
    "pad_token_id": 0,
    "steps": StepRules(delimiter="\n", token="\n"),  # noqa: S106 - no password
}


@dataclass(frozen=True, slots=True)
class Undeclared:
    """The keys of a signal that must be declared.

    Attributes:
        keys: names of the keys.
        files: files of the signal.
        resolved: signal with arbitrary allowed values for the keys; None if it cannot be served.
        problems: reasons why it cannot be served, whatever is declared.
    """

    keys: tuple[str, ...]
    files: SignalFiles
    resolved: ResolvedSignal | None
    problems: tuple[str, ...]


def find_undeclared(signal: SignalSettings) -> Undeclared:
    """Find the keys that must be declared, by trying values for them.

    Raises:
        StartError: a key does not lead to a checkpoint, or a file of the checkpoint is wrong.
    """
    missing: list[str] = []
    try:
        located = locate(signal, Path.cwd())
    except StartError:
        ignoring = signal.model_copy(update={"code": "ignore"})
        located = locate(ignoring, Path.cwd())  # raises again if it is not the code that is refused
        missing.append("code")
    missing += _find_head_keys(signal, located)
    # A value for one key may show that another one is missing.
    for _ in SignalSettings.model_fields:
        trial = signal.model_copy(update={key: _get_trial(key, located) for key in missing})
        try:
            return Undeclared(tuple(missing), located, resolve_signal(trial, Path.cwd()), ())
        except StartError as error:
            # Errors with ": declare it" are those that a declaration can fix; `signal_rules` writes them.
            keys = [line.partition(": declare it")[0] for line in error.problems if ": declare it" in line]
            fillable = [
                key for key in dict.fromkeys(keys) if key not in missing and _get_trial(key, located) is not None
            ]
            if not fillable:
                return _stop(missing, located, error.problems)
            missing += fillable
    return Undeclared(tuple(missing), located, None, ())


def _stop(missing: Sequence[str], located: SignalFiles, problems: Sequence[str]) -> Undeclared:
    """Return what is known once no value is left to try."""
    others = [line for line in problems if line.partition(":")[0] not in missing]
    if others and all(line.startswith("template: ") and NO_TEMPLATE in line for line in others):
        return Undeclared((*missing, "template"), located, None, ())
    return Undeclared(tuple(missing), located, None, tuple(others))


def _get_trial(key: str, located: SignalFiles) -> Any:  # noqa: ANN401 - keys have values of many types
    """Return an allowed value of a key; None if there is no value to try."""
    if key == "head":
        return HeadSettings(gate="the end of the prompt") if is_gated(located) else HeadSettings(tokens=(0,))
    allowed = list_values(key, located) if key in SignalSettings.model_fields else ()
    return _TRIALS.get(key, allowed[0] if allowed else None)


def list_values(key: str, located: SignalFiles) -> tuple[str, ...]:
    """Return the values that a key may have for these files; an empty tuple where they cannot be listed."""
    if key == "quantization":
        method = read_method(located.config, located.base)
        return () if method is None else (method,)
    return tuple(list_gguf_files(located.base)) if key == "gguf_file" else list_allowed_values(key)


def _find_head_keys(signal: SignalSettings, located: SignalFiles) -> list[str]:
    """Return the keys that the tensors of the head demand: tokens of a language model, or one of several outputs."""
    if signal.head is not None or signal.output is not None or located.claims.outputs:
        return []
    if is_gated(located):
        return []  # whether its gate reads the prompt is decided with the other keys
    heads = list_heads(located)
    if not heads and reads_as_language_model(located):
        return ["head"]
    several = len(heads) == 1 and next(iter(heads.values()))[:1] > (1,)
    return ["output"] if several else []


def is_gated(located: SignalFiles) -> bool:
    """Return whether the checkpoint has a head with a gating network, whole or not."""
    return bool(describe_gated(located))


def describe_gated(located: SignalFiles) -> str:
    """Return what a head with a gating network consists of; "" if there is no such head."""
    try:
        layout = None if located.adapters else recognize_layout(read_shapes(located), located.config, located.base)
    except StartError:  # `resolve_signal` reports it
        return "a gated head that is not whole"
    return "" if layout is None else layout.describe()


def list_heads(located: SignalFiles) -> names.Shapes:
    """Return name and shape of every head in the checkpoint that should have one."""
    pattern = names.build_head_weight_pattern(located.config.get("value_head_prefix"))
    return {name: shape for name, shape in read_shapes(located).items() if pattern.match(names.unwrap_name(name))}


def read_shapes(located: SignalFiles) -> names.Shapes:
    """Return the shape of every tensor in the files that should have the head; empty if there are none."""
    return names.read_shapes(list_head_files(located))


def list_head_files(located: SignalFiles) -> list[Path]:
    """Return the files that should have the head; none where a file is missing, which resolving reports."""
    directory = located.checkpoint
    if located.adapter is not None:
        own = directory / files.ADAPTER_WEIGHTS
        return [*([own] if own.is_file() else []), *files.find_value_head_files(directory)]
    try:
        return files.list_weight_files(directory)
    except StartError:
        return []


def reads_as_language_model(located: SignalFiles) -> bool:
    """Return whether a checkpoint without a head can be read by rows of its base's output layer."""
    try:
        base = names.read_shapes(files.list_weight_files(located.base))
    except StartError:
        return False
    own = read_shapes(located)
    return not explain_odd_head(own) and is_language_model(base, located.config)
