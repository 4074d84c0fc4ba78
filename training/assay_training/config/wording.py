"""Explain the errors of a configuration in plain words: pydantic's errors by key, with the allowed values."""

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "path": "a path",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
# Keys of older versions, so that the message can name the new key instead of listing all of them.
_RENAMED = {"optimiser": "optimizer", "max_gap": "max_logprob_mismatch"}
_OTHERS = {
    "missing": "is missing",
    "union_tag_not_found": "needs the key {discriminator}, which selects one of its forms",
    "too_short": "must have {min_length} or more entries, and has {actual_length}",
    "too_long": "must have {max_length} or fewer entries, and has {actual_length}",
    "string_pattern_mismatch": "{given!r} does not match {pattern}",
    "value_error": "{error}",
}


def explain_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return a line `key: message` for each error.

    Unknown keys come first, because a misspelled key is also reported as missing.

    Args:
        error: the error of pydantic.
        model: the model that was validated, for the names of its keys.
    """
    errors = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    renamed = {
        (*fault["loc"][:-1], _RENAMED.get(str(fault["loc"][-1])))
        for fault in errors
        if fault["type"] == "extra_forbidden"
    }
    # A key under its old name is also missing under its new one; the second line would only confuse.
    shown = [fault for fault in errors if fault["type"] != "missing" or fault["loc"] not in renamed]
    return [": ".join(filter(None, (_format_location(fault), _explain(fault, model)))) for fault in shown]


def find_switches(value: Any, key: str = "") -> Iterator[str]:  # noqa: ANN401 - what YAML holds
    """Yield a line `key: …` for each true or false, which no key takes and pydantic would read as 1 and 0."""
    if isinstance(value, bool):
        yield f"{key}: is {str(value).lower()}; no key is a switch"
    elif isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from find_switches(part, f"{key}.{name}".removeprefix("."))


def _format_location(error: ErrorDetails) -> str:
    """Return the path of the key that is wrong; for a wrong key of a mapping, that of the mapping."""
    location = error["loc"][:-2] if error["loc"][-1:] == ("[key]",) else error["loc"]
    return ".".join(map(str, location))


def _explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        renamed = _RENAMED.get(str(error["loc"][-1]))
        if renamed in _find_keys(model, error["loc"][:-1]):
            return f"is called {renamed!r} now; rename the key"
        return f"unknown key; the keys here are {', '.join(_find_keys(model, error['loc'][:-1]))}"
    if kind in ("literal_error", "union_tag_invalid"):
        return f"{context.get('tag', given)!r} is not one of {context.get('expected') or context['expected_tags']}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"must be {words} {f'{limit:g}' if isinstance(limit, float) else limit}, and is {given!r}"
    if kind in _OTHERS:
        return _OTHERS[kind].format(given=given, **context)
    named = next((words for name, words in _KINDS.items() if kind.startswith(f"{name}_") or kind == name), None)
    return f"must be {named}, and is {given!r}" if named else error["msg"].replace("Input should be", "must be")


def _find_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys that a part of a configuration may have."""
    candidates, mapped = [model], False
    for step in location:
        if isinstance(step, int) or mapped:  # an index or a key, under which all entries have the same model
            mapped = False
            continue
        fields = [part.model_fields[step].annotation for part in candidates if step in part.model_fields]
        mapped = any(get_origin(field) is dict for field in fields)
        # A step that is not a field is the tag of a union, which pydantic inserts into the location.
        candidates = [part for field in fields for part in _find_models(field)] or [
            part for part in candidates if _has_tag(part, step)
        ]
    return sorted({name for part in candidates for name in part.model_fields})


def _find_models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - a type
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType, list, dict, tuple):
        for part in get_args(annotation):
            yield from _find_models(part)


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    literals = (f.annotation for f in model.model_fields.values() if get_origin(f.annotation) is Literal)
    return any(tag in get_args(literal) for literal in literals)
