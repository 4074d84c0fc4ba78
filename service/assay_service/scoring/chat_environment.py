"""Compile and render chat templates as transformers does, in its sandbox, with bounds on work and on text.

The sandbox of Jinja keeps a template from files and code, but not from loops without an end, or from texts that double.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any

import jinja2.ext
from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from assay_service.scoring.template_limits import (
    check_arguments,
    check_call,
    check_length,
    check_operator,
    check_size,
    limited,
    spend_chars,
    spend_for,
    spend_steps,
)

_CALL_STEPS = 20  # of one call of a macro


class TemplateRenderer:
    """A renderer of chat templates with the special tokens of a tokenizer, as its `apply_chat_template` is one.

    Args:
        tokenizer: tokenizer whose special tokens are variables of the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer

    def render_chat(
        self,
        conversation: list[dict[str, Any]],
        *,
        chat_template: str,
        **variables: Any,  # noqa: ANN401 - whatever the template reads
    ) -> str:
        """Return the text of a conversation.

        Args:
            conversation: messages as the template reads them.
            chat_template: Jinja source of the template.
            variables: further variables of the template, which take the place of special tokens.

        Raises:
            TemplateError: the template exceeds a bound, or raises an exception of its own.
        """
        constant = {"messages": conversation, "tools": None, "documents": None}
        return render(chat_template, {**self._tokenizer.special_tokens_map, **constant, **variables})


def render(text: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template.

    Args:
        text: Jinja source of the template.
        variables: values of its variables.

    Raises:
        TemplateError: the template exceeds a bound, or raises an exception of its own.
        Exception: the template is not valid, or fails in another way.
    """
    with limited():
        return _compile(text).render(**variables)


@lru_cache(maxsize=256)
def _compile(text: str) -> Template:
    """Compile a template; constants are folded then, so that this needs a budget, too."""
    return BoundedEnvironment().from_string(text)


class _Generation(jinja2.ext.Extension):
    """The tag `generation`, by which templates mark completions for training; here it only prints its body."""

    tags = {"generation"}  # noqa: RUF012 - as in the base class

    def parse(self, parser: Any) -> nodes.Node:  # noqa: ANN401 - as in the base class
        """Return the body of the tag as a scope of its own, as transformers' call block is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, which counts what a template does."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.filters["tojson"] = _write_json
        self.filters = {name: _bound_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {_STEP: _spend_step, _PRINT: _print, _JOIN: _concatenate}
        self.globals["raise_exception"] = _raise_exception
        del self.globals["lipsum"]  # random text

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _count_in(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Return the result of an operator, unless it would be too large."""
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a function or a method of a text, unless its result would be too large."""
        check_call(__obj, args, kwargs)
        return check_size(super().call(__context, __obj, *args, **kwargs))


# Names of filters that no template can spell.
_STEP, _PRINT, _JOIN = "step of a body", "print", "join of ~"


def _count_in(tree: nodes.Template) -> None:
    """Add the counting to the syntax tree of a template: in loops and macros, at what is printed, and at `~`."""
    # The inner ones first, because an outer node then holds the replaced ones.
    for joined in reversed(list(tree.find_all(nodes.Concat))):
        _replace(tree, joined, _filter(nodes.List(joined.nodes), _JOIN))
    for output in tree.find_all(nodes.Output):
        output.nodes = [_filter(_as_expression(node), _PRINT) for node in output.nodes]
    for body in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        # A call costs as much as many turns of a loop, and a recursive loop calls itself.
        calls = not isinstance(body, nodes.For) or body.recursive
        step = nodes.ExprStmt(_filter(nodes.Const(_CALL_STEPS if calls else 1), _STEP))
        body.body.insert(0, step.set_lineno(body.lineno))  # type: ignore[attr-defined]  # all three have one
        # A loop may skip all its elements, and still looks at each.
        if isinstance(body, nodes.For) and body.test is not None:
            body.test = nodes.And(_filter(nodes.Const(1), _STEP), body.test)
    for node in tree.find_all(nodes.Node):
        if node.environment is None:
            node.environment = tree.environment


def _replace(tree: nodes.Node, old: nodes.Node, new: nodes.Node) -> None:
    for parent in (tree, *tree.find_all(nodes.Node)):
        for field, value in parent.iter_fields():
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list):
                value[:] = [new if one is old else one for one in value]


def _as_expression(node: nodes.Expr) -> nodes.Expr:
    return nodes.Const(node.data) if isinstance(node, nodes.TemplateData) else node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


@jinja2.pass_context  # so that the call is not folded into a constant
def _spend_step(_: Context, count: int) -> int:
    spend_steps(count)
    return count


@jinja2.pass_context
def _print(_: Context, value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    spend_chars(len(text))
    return text


@jinja2.pass_context
def _concatenate(_: Context, values: list[object]) -> str:
    texts = [str(value) for value in values]
    check_length(sum(map(len, texts)))
    return "".join(texts)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _write_json(  # transformers' own filter, which escapes no HTML
    x: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _bound_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that spends a step for each element that it reads, and whose result is not too large."""
    # Jinja passes some filters its context or environment first.
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the filter
        before, value, rest = args[:skipped], args[skipped], args[skipped + 1 :]
        if name == "join" and inspect.isgenerator(value):  # its length is a factor of the result's
            value = list(value)
        spend_for(value)
        check_arguments(name, value, rest, kwargs)
        return check_size(function(*before, value, *rest, **kwargs))

    return bounded
