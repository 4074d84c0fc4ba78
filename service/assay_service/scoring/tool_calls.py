"""Hold the tool calls of a message, and list every text and value in them. No side effects."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Json: TypeAlias = Any  # a value that JSON can hold

_RANK_DIGITS = 6
# Some templates escape texts for Python's quotes themselves.
_QUOTED = str.maketrans({"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r"})


@dataclass(frozen=True, slots=True)
class Leaf:
    """One text or value of a message, which the template has to print.

    Attributes:
        field: path within the message, such as `content` or `tool_calls[0].function.name`. Arguments are counted in
            it, because their names are texts, which no error quotes.
        text: the text; of a bare value, its JSON.
        bare: True for what JSON writes without quotes: a number, true, false, null, or an empty list or object.
        named: True for the name of an argument.
    """

    field: str
    text: str
    bare: bool = False
    named: bool = False

    def list_spellings(self) -> tuple[str, ...]:
        """Return the ways in which a template may print the leaf: as it is, by `tojson`, or as Python writes it."""
        if not self.field.startswith("tool_calls"):
            return (self.text,)
        if self.bare:
            return tuple(dict.fromkeys((self.text, str(json.loads(self.text)))))
        return tuple(
            dict.fromkeys((self.text, json.dumps(self.text, ensure_ascii=False)[1:-1], self.text.translate(_QUOTED)))
        )


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function, in a form that can be hashed.

    Attributes:
        name: name of the function.
        arguments: JSON text of an object. It is a text because Python takes 1, 1.0 and True for the same key.
        id: id of the call, to which the message with the function's result refers; None if it has none.
        sent_as_text: True if the client sent the arguments as JSON text, as models write them.
        as_text: True if the template gets the arguments as text, False if it gets an object.
    """

    name: str
    arguments: str
    id: str | None = None
    sent_as_text: bool = False
    as_text: bool = False

    def as_dict(self) -> dict[str, Json]:
        """Return the call in OpenAI's form, which templates read."""
        arguments = self.arguments if self.as_text else json.loads(self.arguments)
        named = {} if self.id is None else {"id": self.id}
        return {**named, "type": "function", "function": {"name": self.name, "arguments": arguments}}

    def list_leaves(self, where: str) -> Iterator[Leaf]:
        """Yield the texts and values of the call, whose path is `where`, in the order of `replace_leaves`."""
        yield Leaf(f"{where}.function.name", self.name)
        path = f"{where}.function.arguments"
        if self.as_text:
            yield Leaf(path, self.arguments)
        elif self.arguments != "{}":  # without arguments, nothing has to be printed
            yield from _list_leaves(json.loads(self.arguments), path)

    def replace_leaves(self, texts: Iterator[str]) -> "ToolCall":
        """Return the call with the next of `texts` in the place of each leaf; bare values are read as JSON."""
        name = next(texts)
        if self.as_text:
            return replace(self, name=name, arguments=next(texts))
        if self.arguments == "{}":
            return replace(self, name=name)
        return replace(self, name=name, arguments=_dump(_replace_leaves(json.loads(self.arguments), texts)))

    def blank(self) -> "ToolCall":
        """Return the call with neutral leaves; calls of one structure have the same blank."""
        arguments = self.arguments if self.as_text else _dump(_blank(json.loads(self.arguments)))
        return replace(self, name="", arguments="" if self.as_text else arguments, sent_as_text=False)


def dump_arguments(arguments: dict[str, Json]) -> str:
    """Return the JSON text of an object, as `ToolCall.arguments` holds it."""
    return _dump(arguments)


def measure_depth(value: Json) -> int:
    """Return how deeply lists and objects are nested in `value`; 0 for a text or number."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(measure_depth, inner), default=0)


def _dump(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list_leaves(value: Json, path: str) -> Iterator[Leaf]:
    if isinstance(value, dict) and value:
        for number, (name, inner) in enumerate(value.items()):
            yield Leaf(f"{path}.<name {number}>", name, named=True)
            yield from _list_leaves(inner, f"{path}.<value {number}>")
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _list_leaves(inner, f"{path}[{number}]")
    elif isinstance(value, str):
        yield Leaf(path, value)
    else:
        yield Leaf(path, _dump(value), bare=True)


def _replace_leaves(value: Json, texts: Iterator[str]) -> Json:
    if isinstance(value, dict) and value:
        return {next(texts): _replace_leaves(inner, texts) for inner in value.values()}
    if isinstance(value, list) and value:
        return [_replace_leaves(inner, texts) for inner in value]
    return next(texts) if isinstance(value, str) else json.loads(next(texts))


def _blank(value: Json) -> Json:
    """Return `value` with neutral leaves, whose names keep the order in which Jinja's `dictsort` puts them."""
    if isinstance(value, dict) and value:
        order = sorted(range(len(value)), key=[name.lower() for name in value].__getitem__)
        ranks = {position: rank for rank, position in enumerate(order)}
        return {f"{ranks[i]:0{_RANK_DIGITS}}": _blank(inner) for i, inner in enumerate(value.values())}
    if isinstance(value, list) and value:
        return [_blank(inner) for inner in value]
    return "" if isinstance(value, str) else 0
