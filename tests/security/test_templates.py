"""Chat templates run in a sandbox, as transformers runs them, but with bounds on their work and their text."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import SecurityError, TemplateError
from transformers.utils import chat_template_utils

import assay_service
from assay_service.errors import ContentError
from assay_service.scoring import template_limits
from assay_service.scoring.chat_environment import TemplateRenderer, render
from assay_service.scoring.item import Item, Message
from assay_service.scoring.template import PINNED_DAY, Template
from tests import checkpoints
from tests.real_templates import trl_templates

PRESETS = Path(assay_service.__file__).parent / "presets" / "templates"
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": [1, "ü"]}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi\n there"}, {"role": "assistant", "content": "Hello <b>{{ x }}</b>"}],
    [
        {"role": "system", "content": "Sys"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c ' \""},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nd"},
    ],
    [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "x", "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "name": "f"},
        {"role": "assistant", "content": "y"},
    ],
]


def outcome(run: Any) -> Any:
    try:
        return run()
    except Exception as error:
        return type(error), str(error)


def test_published_templates_print_what_transformers_prints() -> None:
    texts = list(trl_templates().values()) + [path.read_text() for path in sorted(PRESETS.iterdir())]
    texts.append("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    texts.append("{{ 'a' ~ 1 ~ none }}{{ messages|map(attribute='role')|join('-') }}")
    texts.append("{% set x %}{{ bos_token }}{% endset %}{{ x }}")
    assert len(texts) > 50
    for text in texts:
        for chat in CHATS:
            for add_generation_prompt in (False, True):
                variables: dict[str, Any] = {
                    "messages": chat,
                    "tools": None,
                    "documents": None,
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                }
                variables |= {"add_generation_prompt": add_generation_prompt, "strftime_now": PINNED_DAY.strftime}
                compiled = chat_template_utils._compile_jinja_template(text)
                theirs = outcome(lambda: compiled.render(**copy.deepcopy(variables)))  # noqa: B023
                assert outcome(partial(render, text, copy.deepcopy(variables))) == theirs


DOUBLED = "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = DOUBLE %}{% endfor %}"
TWICE = "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"
PRINTS, STEPS, CHARS = (
    "prints more than 4000000",
    "takes more than 1000000 steps",
    "makes a text or list of more than 4000000",
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", STEPS),
        ("{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}", STEPS),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", STEPS),
        ("{% for i in [1] recursive %}{% if loop.depth < 60 %}{{ loop([1,1]) }}{% endif %}{% endfor %}", STEPS),
        ("{% for i in range(99999) %}{{ range(99999)|map('string')|list|length }}{% endfor %}", STEPS),
        ("{% for i in range(99999) %}{{ 'abcdefghij' * 10 }}{% endfor %}", PRINTS),
        ("{% for i in range(99999) %}01234567890123456789012345678901234567890{% endfor %}", PRINTS),
        (DOUBLED.replace("= DOUBLE %}", "= ns.s ~ ns.s %}"), CHARS),
        (DOUBLED.replace("= DOUBLE %}", "= ns.s + ns.s %}"), CHARS),
        (DOUBLED.replace("= DOUBLE %}", "= [ns.s, ns.s]|join %}"), CHARS),
        (DOUBLED.replace("{% set ns.s = DOUBLE %}", TWICE), PRINTS),
        ("{{ 'a' * 10000000000 }}", CHARS),
        ("{{ 10000000000 * [1] }}", CHARS),
        ("{{ 'a'|center(1000000000) }}", CHARS),
        ("{{ 'a'.ljust(1000000000) }}", CHARS),
        ("{{ ('a'*1000000).replace('a', 'b'*1000000) }}", CHARS),
        ("{{ ('a'*1000000)|replace('a', 'b'*1000000) }}", CHARS),
        ("{{ ('a'*1000000).join(range(9999)|map('string')|list) }}", CHARS),
        ("{{ range(9999)|map('string')|join('a'*1000000) }}", CHARS),
        ("{{ ('x\n'*1000000)|indent(1000) }}", CHARS),
        ("{{ [1]|tojson(indent=10000000) }}", CHARS),
        ("{{ '{:>100000000}'.format(1) }}", "`format` in a way whose result may be too long"),
        ("{{ '{0:{1}}'.format('a', 1000000000) }}", CHARS),
        ("{{ '%0100000000d' % 1 }}", "a width that may be too long"),
        ("{{ '%*d' % (100000000, 1) }}", "a width that may be too long"),
        ("{{ 'a'.expandtabs(1000) }}", "`expandtabs` in a way"),
        ("{{ 9 ** 9999999 }}", "numbers that are too large"),
        ("{% set ns = namespace(n=2) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}", "too large"),
    ],
)  # fmt: skip
def test_a_template_that_exceeds_a_bound_is_the_items_error(text: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        render(text, {})
    template = Template(TemplateRenderer(checkpoints.decoder_tokenizer()), text)
    with pytest.raises(ContentError, match=f"the chat template refuses this conversation: it .*{said}") as caught:
        template.render(Item((Message("user", "p"), Message("assistant", "c"))))
    assert caught.value.code == "template_error"


def test_a_template_may_use_most_of_its_budget() -> None:
    turns = template_limits.MOST_STEPS // 100
    assert len(render("{% for i in range(turns) %}{% for j in range(90) %}.{% endfor %}{% endfor %}", {"turns": turns}))


def test_budgets_are_per_rendering_and_not_shared() -> None:
    for _ in range(30):
        render("{% for i in range(99999) %}.{% endfor %}", {})


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{{ open('x') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.__reduce_ex__(4) }}",
    ],
)
def test_no_template_reaches_python(text: str) -> None:
    try:
        printed = render(text, {"messages": []})
    except (SecurityError, TemplateError, TypeError):  # refused, or no such thing; `include` has no loader
        return
    assert printed in ("", "1")
