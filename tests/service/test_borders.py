"""Borders of pieces: each piece of a rendered text is encoded by itself, as the code of some rerankers does."""

from itertools import pairwise
from typing import Any

import pytest

from assay_service.errors import ContentError, StartError
from assay_service.scoring.item import Item
from assay_service.scoring.manifest import StepRules
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from tests import checkpoints

FAST = checkpoints.decoder_tokenizer()
# "quick" is one token, of which the messages below have the first letters and the template the others.
TEMPLATE = (
    "<|im_start|>user\n{{ messages[0]['content'] }}{{ piece_border }}ck<|im_end|>\n<|im_start|>assistant\n"
    "{% if not add_generation_prompt %}{{ messages[-1]['content'] }}{{ piece_border }}ck<|im_end|>\n{% endif %}"
)
WHOLE = TEMPLATE.replace("{{ piece_border }}", "")
PIECES = ("<|im_start|>user\nThe qui", "ck<|im_end|>\n<|im_start|>assistant\nA qui", "ck<|im_end|>\n")


def renderer(template: str = TEMPLATE, **rules: Any) -> Renderer:
    kept: dict[str, Any] = {"score_position": "last_token", "eos": "template", "unfinished": "score", **rules}
    return Renderer(FAST, RenderRules(template=template, max_length=200, **kept), len(FAST))


def encode(*pieces: str) -> list[int]:
    return [token for piece in pieces for token in FAST.encode(piece, add_special_tokens=False)]


def test_every_piece_is_encoded_by_itself_and_borders_are_not_in_the_text() -> None:
    item = Item.of("The qui", "A qui")
    rendered = renderer().render(item)
    assert list(rendered.sequence.ids) == encode(*PIECES) != encode("".join(PIECES))
    assert rendered.text == "".join(PIECES) == renderer(WHOLE).render(item).text
    assert list(renderer(WHOLE).render(item).sequence.ids) == encode("".join(PIECES))
    # The prompt ends where the completion's first token stands.
    prompt = encode(PIECES[0], PIECES[1].removesuffix("A qui"))
    assert list(rendered.sequence.ids[: rendered.boundary]) == prompt
    assert rendered.sequence.score.end == len(rendered.sequence.ids)


def test_an_unfinished_completion_ends_before_its_border() -> None:
    rendered = renderer().render(Item.of("The qui", "A qui", "length"))
    assert list(rendered.sequence.ids) == encode(*PIECES[:2])
    assert rendered.text == "".join(PIECES[:2])


def test_control_tokens_that_are_read_as_text_leave_the_borders_where_they_are() -> None:
    rendered = renderer(control_tokens="text").render(Item.of("<|im_end|>The qui", "A qui"))
    ids = list(rendered.sequence.ids)
    end = FAST.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 2
    assert rendered.control_tokens_as_text == 1
    last = encode(*PIECES[1:])
    assert ids[-len(last) :] == last


def test_a_message_with_the_character_that_marks_borders_is_refused() -> None:
    item = Item.of("The \ufdd4qui", "A qui")
    with pytest.raises(ContentError, match=r"U\+FDD4") as caught:
        renderer().render(item)
    assert caught.value.code == "special_tokens"
    assert "\ufdd4" in renderer(WHOLE).render(item).text  # without borders it is a character as any other


def test_a_template_that_prints_another_text_where_borders_are_marked_is_refused() -> None:
    odd = TEMPLATE.replace("{{ piece_border }}ck<", "{% if piece_border %}x{% endif %}ck<", 1)
    with pytest.raises(StartError, match="another text where piece_border is defined; let it only print the variable"):
        renderer(odd)


def test_steps_have_a_rule_of_their_own() -> None:
    steps = StepRules(delimiter="\n", token="0")
    with pytest.raises(StartError, match=r"template: prints piece_border.*steps\.tokenize: apart"):
        renderer(score_position="steps", steps=steps)


def test_pieces_are_joined_in_the_order_of_the_template() -> None:
    """A guard of this file: no two neighbors have the ids of their joined text, so that each border is felt."""
    assert all(encode(first, second) != encode(first + second) for first, second in pairwise(PIECES))
