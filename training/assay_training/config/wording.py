"""What is wrong with a configuration, in plain words: pydantic's errors by key, with the values that are allowed."""

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
_RENAMED = {"optimiser": "optimizer", "max_gap": "max_logprob_mismatch"}
_OTHERS = {
    "missing": "is missing",
    "union_tag_not_found": "needs {discriminator}, which says which of its forms it has",
    "too_short": "must have {min_length} or more entries, and has {actual_length}",
    "too_long": "must have {max_length} or fewer entries, and has {actual_length}",
    "string_pattern_mismatch": "{given!r} does not match {pattern}",
    "value_error": "{error}",
}


def explained(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return a line `key: what is wrong` for each error; unknown keys come first, as a misspelt key is also missing."""
    errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    renamed = {
        (*one["loc"][:-1], _RENAMED.get(str(one["loc"][-1]))) for one in errors if one["type"] == "extra_forbidden"
    }
    shown = [one for one in errors if one["type"] != "missing" or one["loc"] not in renamed]
    return [": ".join(filter(None, (".".join(map(str, one["loc"])), _words(one, model)))) for one in shown]


def switches(value: Any, key: str = "") -> Iterator[str]:  # noqa: ANN401 - what YAML holds
    """Yield a line `key: …` per true or false: no key takes them, and pydantic reads them as the numbers 1 and 0."""
    if isinstance(value, bool):
        yield f"{key}: is {str(value).lower()}, as YAML reads yes, no, on and off; no key is a switch"
    elif isinstance(value, dict | list):
        for name, of in value.items() if isinstance(value, dict) else enumerate(value):
            yield from switches(of, f"{key}.{name}".removeprefix("."))


def _words(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        renamed = _RENAMED.get(str(error["loc"][-1]))
        if renamed in _keys(model, error["loc"][:-1]):
            return f"is called {renamed!r} now; rename the key"
        return f"there is no such key; the keys here are {', '.join(_keys(model, error['loc'][:-1]))}"
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


def _keys(model: type[BaseModel], way: Sequence[int | str]) -> list[str]:
    """Return the keys that a part of a configuration may have."""
    there = [model]
    for step in way:
        if isinstance(step, int):
            continue
        fields = [one.model_fields[step].annotation for one in there if step in one.model_fields]
        # What is no field is the tag of a union, which pydantic puts into the way.
        there = [one for field in fields for one in _models(field)] or [one for one in there if _tagged(one, step)]
    return sorted({name for one in there for name in one.model_fields})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - a type
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType, list, dict, tuple):
        for part in get_args(annotation):
            yield from _models(part)


def _tagged(model: type[BaseModel], tag: str) -> bool:
    literals = (f.annotation for f in model.model_fields.values() if get_origin(f.annotation) is Literal)
    return any(tag in get_args(literal) for literal in literals)
