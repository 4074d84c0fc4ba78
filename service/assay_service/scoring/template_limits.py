"""Count what a chat template does while it is rendered, and refuse what would be too much.

Every check comes before the work. The bounds count steps and characters, not seconds, so that a busy machine refuses
nothing that an idle one scores.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

MOST_STEPS = 1_000_000  # bodies of loops and macros, and elements that filters read; under a second of work
MOST_CHARS = 4_000_000  # of one text, and of all that is printed; 20 times the default of limits.max_item_chars
_MOST_BITS = 10_000  # of a whole number
_LONG_NUMBER = re.compile(r"\d{7}|\*")  # a width in a format, which may also come from an argument
# Methods and filters whose result may be much longer than all that they get, and that no known template uses.
_REFUSED_METHODS = frozenset({"translate", "expandtabs"})
# Filters and methods to which a number says how long something gets; to others it is a value.
_PADDING = frozenset(
    {"center", "ljust", "rjust", "zfill", "indent", "wordwrap", "truncate", "batch", "slice", "tojson"}
)


@dataclass(slots=True)
class _Budget:
    """What one rendering may still do."""

    steps: int = MOST_STEPS
    chars: int = MOST_CHARS


# Of the rendering that runs in this thread; several run at once.
_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def limited() -> Iterator[None]:
    """Give the block the whole budget of one rendering."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def spend_steps(count: int) -> None:
    """Spend steps of the rendering that runs in this thread.

    Raises:
        TemplateError: none are left.
    """
    budget = _budget.get()
    budget.steps -= count
    if budget.steps < 0:
        raise TemplateError(f"it takes more than {MOST_STEPS} steps; its loops are too many or too long")


def spend_chars(count: int) -> None:
    """Spend printed characters of the rendering that runs in this thread.

    Raises:
        TemplateError: none are left.
    """
    budget = _budget.get()
    budget.chars -= count
    if budget.chars < 0:
        raise TemplateError(f"it prints more than {MOST_CHARS} characters")


def spend_for(value: object) -> None:
    """Spend the steps of reading a value once; a hundred characters of a text are one.

    Raises:
        TemplateError: none are left.
    """
    size = len(value) if hasattr(value, "__len__") else 1
    spend_steps(1 + (size // 100 if isinstance(value, str) else size))


def check_call(function: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse the call of a function or a method whose result would be too large.

    Raises:
        TemplateError: it would be, or no step is left.
    """
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
    value, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(value, str | bytes | list | dict):
        spend_for(value)
        if name in _REFUSED_METHODS or (name.startswith("format") and _LONG_NUMBER.search(str(value))):
            raise TemplateError(f"it calls `{name}` in a way whose result may be too long")
    if isinstance(value, str | bytes):
        check_arguments(name, value, args, kwargs)


def check_arguments(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Refuse arguments by which a short text becomes a long one.

    Args:
        name: name of the filter or method.
        value: value that it is applied to.
        args: arguments by position.
        kwargs: arguments by name.

    Raises:
        TemplateError: the result would be too long.
    """
    given = [*args, *kwargs.values()]
    numbers = [abs(one) for one in given if isinstance(one, int) and name in _PADDING]
    texts = [one for one in given if isinstance(one, str)]
    longest = max([0, *numbers, *map(len, texts)])
    check_length(longest)
    if not isinstance(value, str) and name == "join":
        check_length(longest * (len(value) if hasattr(value, "__len__") else 1))
    elif isinstance(value, str) and name == "join":  # the method: the text itself stands between the parts
        check_length(len(value) * max([0, *(len(one) for one in given if hasattr(one, "__len__"))]))
    elif isinstance(value, str) and name == "replace" and len(texts) > 1:
        count = len(value) + 1 if not texts[0] else value.count(texts[0])
        check_length(len(value) + count * max(0, len(texts[1]) - len(texts[0])))
    elif isinstance(value, str) and name in ("indent", "wordwrap"):
        check_length(len(value) + (value.count("\n") + 1 + len(value) * (name == "wordwrap")) * longest)
    elif isinstance(value, str) and name == "format" and _LONG_NUMBER.search(value):
        raise TemplateError("it formats a text with a width that may be too long")
    elif name == "tojson":
        check_length(longest * 1000)


def check_operator(operator: str, left: Any, right: Any) -> None:  # noqa: ANN401 - any value of a template
    """Refuse an operator whose result would be too large.

    Raises:
        TemplateError: it would be.
    """
    match operator, left, right:
        case "*", (str() | list() | tuple() | bytes()) as text, int() as count:
            check_length(len(text) * count)
        case "*", int() as count, (str() | list() | tuple() | bytes()) as text:
            check_length(len(text) * count)
        case "*", int(), int():
            _check_bits(left.bit_length() + right.bit_length())
        case "**", int(), int():
            _check_bits(left.bit_length() * abs(right))
        case "+", (str() | list() | tuple() | bytes()), (str() | list() | tuple() | bytes()):
            check_length(len(left) + len(right))
        case "%", str(), _ if _LONG_NUMBER.search(left):
            raise TemplateError("it formats a text with a width that may be too long")
        case "%", str(), _:
            spend_for(left)


def check_size(result: Any) -> Any:  # noqa: ANN401 - any value of a template
    """Return a result that is not too long; a generator counts what it gives.

    Raises:
        TemplateError: it is too long.
    """
    if isinstance(result, str | list | tuple):
        check_length(len(result))
    return _count(result) if inspect.isgenerator(result) else result


def _count(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        spend_steps(1)
        yield value


def check_length(length: int) -> None:
    """Refuse a text or list of this length.

    Raises:
        TemplateError: it is too long.
    """
    if length > MOST_CHARS:
        raise TemplateError(f"it makes a text or list of more than {MOST_CHARS} characters or elements")


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TemplateError("it computes with numbers that are too large")
