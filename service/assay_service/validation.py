"""Explain pydantic's errors in plain words; an explanation never repeats the value, which may be a user's text."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from assay_service.advice import get_advice

_KEYS = "must be a mapping of keys to values (a JSON object)"
_NUMBER = "must be a number"
_WHOLE = "must be a whole number"
_LIST = "must be a list"

# Explanations by pydantic's error type; `{…}` are the fields of the error's context.
_TEXTS: Mapping[str, str] = {
    "missing": "is required",
    "invalid_key": "a key must be text",
    "extra_forbidden": "unknown key",
    "none_required": "must be omitted",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be one of {expected}",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": "is too large",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "dict_type": _KEYS,
    "mapping_type": _KEYS,
    "model_type": _KEYS,
    "model_attributes_type": _KEYS,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} elements",
    "json_invalid": "is not valid JSON",
    "json_type": "must be JSON",
}

# Regular expressions, and below them the sentences that errors print in their place.
NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
SHA256_PATTERN = "^[0-9a-f]{64}$"
DEVICE_PATTERN = r"^(cpu|mps|(cuda|xpu)(:\d+)?)$"
TAG_PATTERN = r"^\S(.*\S)?$"
_PATTERNS: Mapping[str, str] = {
    NAME_PATTERN: "must be 1 to 64 letters, digits, dots, underscores or hyphens",
    SHA256_PATTERN: "must be 64 hexadecimal digits",
    TAG_PATTERN: "must not begin or end with white space",
    DEVICE_PATTERN: "must be cpu, cuda, cuda:0, cuda:1, …, mps or xpu",
}


def explain(error: ErrorDetails) -> str:
    """Return an explanation as a predicate of the key that has the value ("must be a whole number")."""
    context: dict[str, Any] = dict(error.get("ctx") or {})
    if "error" in context:  # a ValueError that one of Assay's validators raised
        return str(context["error"])
    if context.get("pattern") in _PATTERNS:
        return _PATTERNS[context["pattern"]]
    if "expected" in context:  # pydantic writes "'a', 'b' or 'c'"
        context["expected"] = str(context["expected"]).replace("'", "").replace(" or ", ", ")
    text = _TEXTS.get(error["type"])
    if text is None:  # an error type without a sentence above
        return error["msg"].replace("Input should", "must")
    return text.format_map(context)


def format_key(location: tuple[int | str, ...], keep: Callable[[str], bool] = lambda _: True) -> str:
    """Return a pydantic location as a path: ("items", 3, "prompt") is "items[3].prompt".

    Args:
        location: keys and list indices.
        keep: predicate of a key; a key for which it is False is not part of the path.
    """
    path = ""
    for part in location:
        if isinstance(part, int) and not isinstance(part, bool):  # YAML reads the key `true` as a bool
            path += f"[{part}]"
        elif keep(str(part)):
            path += f".{part}" if path else str(part)
    return path


def find_wrong_names_in(raw: Mapping[str, Any]) -> list[str]:
    """Return the errors in the names of a configuration that may have other errors, too."""
    signals, blends = (part if isinstance(part := raw.get(key), dict) else {} for key in ("signals", "blends"))
    weights = {n: w for n, b in blends.items() if isinstance(b, dict) and isinstance(w := b.get("weights"), dict)}
    default = raw.get("default")
    wrong = find_wrong_names(signals, weights, default if isinstance(default, str) else None)
    if default is None and (blends or len(signals) > 1):
        wrong.append(
            f"default: is required: {get_advice('default')}; one of {join_names(map(str, [*signals, *blends]))}"
        )
    return wrong


def find_wrong_names(
    signals: Iterable[str], blend_weights: Mapping[str, Iterable[str]], default: str | None
) -> list[str]:
    """Return the errors in the names of signals and blends.

    Args:
        signals: names of the signals.
        blend_weights: names of the signals that each blend weighs, by name of the blend.
        default: name of the default; None is not checked.
    """
    signals = dict.fromkeys(signals)  # a set that keeps the order of the file
    names = [*map(str, signals), *map(str, blend_weights)]
    wrong = [
        f"blends.{n}: a signal has this name too; rename one" for n in sorted(signals.keys() & blend_weights.keys())
    ]
    if default is not None and default not in names:
        wrong.append(f"default: {default!r} is neither a signal nor a blend; declare one of {join_names(names)}")
    for name, weights in blend_weights.items():
        known = join_names(map(str, signals))
        unknown = sorted({str(signal) for signal in weights if signal not in signals})
        wrong += [f"blends.{name}.weights: {signal!r} is not a signal; weigh one of {known}" for signal in unknown]
    return wrong


def join_names(names: Iterable[str]) -> str:
    """Return a list of names as errors print it."""
    return ", ".join(names)


def check_one_or_several(value: object) -> object:
    """Return a text, or a list of texts, as it is.

    Raises:
        ValueError: the value is neither, or the list is empty. Pydantic alone would report both forms of the union.
    """
    several = value if isinstance(value, list) else [value]
    if value is not None and not (several and all(isinstance(entry, str) for entry in several)):
        raise ValueError("must be text, or a list of texts that is not empty")
    return value


def check_output(value: object) -> object:
    """Return the declared output of a head: a number, a name, or two numbers.

    Raises:
        ValueError: the value is none of these.
    """
    numbers = value if isinstance(value, list | tuple) else [value]
    right = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    if isinstance(value, list | tuple):
        right = right and len(value) == 2 and value[0] != value[1]
    if not (right or value is None or (isinstance(value, str) and value)):
        raise ValueError("must be the number or name of an output, or two different numbers: [I, J]")
    return tuple(value) if isinstance(value, list) else value


def check_tokens(value: object) -> object:
    """Return one or two tokens, each a text or an id.

    Raises:
        ValueError: the value is not a list of one or two different texts or ids.
    """
    tokens = value if isinstance(value, list | tuple) else []
    right = all(isinstance(t, str | int) and not isinstance(t, bool) and t != "" for t in tokens)
    if not (right and len(tokens) in (1, 2) and len(set(tokens)) == len(tokens)):
        raise ValueError("must be a list of one or two different tokens, each a text or an id")
    return tuple(tokens)
