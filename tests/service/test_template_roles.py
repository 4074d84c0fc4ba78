"""What the chat templates of published models do with every role, and what they would have lost silently."""

import json
from collections import Counter

import pytest

from assay_service.errors import ContentError
from assay_service.scoring.chat_environment import TemplateRenderer
from assay_service.scoring.item import Item, Message
from assay_service.scoring.template import Template
from tests import checkpoints
from tests.real_templates import trl_templates
from tests.real_tokenizers import real_tokenizer

ROLES = ("system", "user", "assistant", "tool", "developer", "function", "human")
# For each template and role, a message of that role before, amid and after the others. "+" is printed once, "-" is not
# printed, "x" is refused by the template itself.
EXPECTED = """
                             sys use ass too dev fun hum
trl cohere                   +xx xxx xxx xxx xxx xxx xxx
trl cohere2                  +++ xxx xxx --- --- --- ---
trl deepseek_r1_distill      +++ +++ +++ +++ --- --- ---
trl deepseekv3               +++ +++ +++ +++ --- --- ---
trl diffusion_gemma          +++ +++ +++ --- +++ +++ +++
trl gemma                    xxx xxx xxx xxx xxx xxx xxx
trl gemma3                   +xx xxx xxx xxx xxx xxx xxx
trl gemma4                   +++ +++ +++ --- +++ +++ +++
trl gemma4_v2                +++ +++ +++ +++ +++ +++ +++
trl gemma4_v3                +++ +++ +++ --- +++ +++ +++
trl gemma4_v4                +++ +++ +++ --- +++ +++ +++
trl gemma4_v5                +++ +++ +++ --- +++ +++ +++
trl glm4moe                  +++ +++ +++ +++ --- --- ---
trl gptoss                   +-- +++ +++ xxx +-- --- ---
trl idefics3                 --- --- --- --- --- --- ---
trl lfm2                     +++ +++ +++ +++ +++ +++ +++
trl lfm2_2_5                 +++ +++ +++ +++ +++ +++ +++
trl lfm2_2_5_v2              +++ +++ +++ +++ +++ +++ +++
trl lfm2_2_5_vl              +++ +++ +++ +++ +++ +++ +++
trl lfm2_v2                  +++ +++ +++ +++ +++ +++ +++
trl llama3                   +++ +++ +++ +++ +++ +++ +++
trl llama3_1                 +++ +++ +++ +++ +++ +++ +++
trl llama3_2                 +++ +++ +++ +++ +++ +++ +++
trl llava_next               xxx xxx xxx xxx xxx xxx xxx
trl muse_glimmer             +++ +++ +++ +++ --- --- ---
trl nemotron_3_5_lightning   +++ +++ +++ +++ +++ +++ +++
trl nemotron_3_nano          +++ +++ +++ +++ +++ +++ +++
trl nemotron_3_super         +++ +++ +++ +++ +++ +++ +++
trl nemotron_3_ultra         +++ +++ +++ +++ +++ +++ +++
trl phi3                     +++ +++ +++ --- --- --- ---
trl phi3_5                   +++ +++ +++ --- --- --- ---
trl qwen2_5                  +++ +++ +++ +++ --- --- ---
trl qwen2_5_vl               +++ +++ +++ +++ +++ +++ +++
trl qwen3                    +++ +++ +++ +++ --- --- ---
trl qwen3_5_nothink          +xx +++ +++ +++ xxx xxx xxx
trl qwen3_5_think            +xx +++ +++ +++ xxx xxx xxx
trl qwen3_6                  +xx +++ +++ +++ xxx xxx xxx
trl qwen3_8                  +xx +++ +++ +++ xxx xxx xxx
trl qwen3_instruct_2507      +++ +++ +++ +++ --- --- ---
trl qwen3_vl                 +-- +++ +++ +++ --- --- ---
trl smolvlm                  --- --- --- --- --- --- ---
deepseek_v3                  +++ +++ +++ +++ --- --- ---
gemini                       xxx xxx xxx xxx xxx xxx xxx
gemma3                       +xx xxx xxx xxx xxx xxx xxx
llama3                       +++ +++ +++ +++ +++ +++ +++
llama3_1                     +++ +++ +++ +++ +++ +++ +++
qwen2_5                      +++ +++ +++ +++ --- --- ---
qwen3                        +++ +++ +++ +++ --- --- ---
"""
FROM_PACKAGES = ("deepseek_v3", "gemini", "gemma3", "llama3", "llama3_1", "qwen2_5", "qwen3")


def _template(name: str) -> str:
    if name.startswith("trl "):
        return trl_templates()[name.removeprefix("trl ")]
    config = json.loads((real_tokenizer(name) / "tokenizer_config.json").read_bytes())
    return str(config["chat_template"])


def _expected() -> dict[str, list[str]]:
    rows = [line.rsplit(maxsplit=len(ROLES)) for line in EXPECTED.strip().splitlines()[1:]]
    return {name.strip(): cells for name, *cells in rows}


def _outcome(template: Template, messages: tuple[Message, ...], place: int) -> str:
    try:
        rendered = template.render(Item(messages))
    except ContentError as error:
        if error.message.startswith("the chat template refuses"):
            return "x"
        return "-" if error.message.startswith("the template does not print messages[") else error.message
    assert not rendered.dropped
    assert rendered.full.count(messages[place].content) == 1
    return "+"


@pytest.mark.parametrize("name", _expected())
def test_every_role_is_printed_or_refused(name: str) -> None:
    template = Template(TemplateRenderer(checkpoints.decoder_tokenizer()), _template(name))
    user, assistant = Message("user", "Hello there"), Message("assistant", "Fine thanks")
    found = []
    for role in ROLES:
        odd = Message(role, "Some text here")
        conversations = ((odd, user, assistant), (user, assistant, odd, user, assistant), (user, odd, assistant))
        found.append("".join(_outcome(template, c, c.index(odd)) for c in conversations))
    assert found == _expected()[name]


def test_the_table_covers_every_template() -> None:
    table = _expected()
    assert set(table) == {f"trl {name}" for name in trl_templates()} | set(FROM_PACKAGES)
    cells = Counter("".join(cell for row in table.values() for cell in row))
    assert (len(table), cells["-"]) == (48, 204)
