"""Sequences in a packed row: every one is there whole, prompts once each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

from assay_service.scoring.layout import STEP_TOKENS, Span, TokenSequence, pack, select_read_tokens

PROMPTS = [(), (1,), (1, 2), (2, 1), (1, 2, 3, 4)]


@st.composite
def sequences(draw: st.DrawFn) -> TokenSequence:
    prompt = draw(st.sampled_from(PROMPTS))
    completion = tuple(draw(st.lists(st.integers(5, 9), min_size=0 if prompt else 1, max_size=6)))
    ids = prompt + completion
    start = draw(st.integers(0, len(ids) - 1))
    second = draw(st.none() | st.integers(0, len(ids) - 1))
    return TokenSequence(ids, len(prompt), Span(start, draw(st.integers(start + 1, len(ids)))), second)


@given(st.lists(sequences(), min_size=1, max_size=12), st.booleans())
def test_every_sequence_is_there_whole_and_read_where_it_says(given: list[TokenSequence], share: bool) -> None:
    row = pack(given, share_prompts=share)
    ids, positions, types = row.ids[0].tolist(), row.positions[0].tolist(), row.types[0].tolist()
    whole = {segment.own: segment for segment in row.segments}
    for sequence, pieces in zip(given, row.spans, strict=True):
        read = [(ids[i], positions[i], types[i]) for piece in pieces for i in range(piece.start, piece.end)]
        span = sequence.score
        first = len(sequence.ids) if sequence.second_segment is None else sequence.second_segment
        assert read == [(sequence.ids[i], i, int(i >= first)) for i in range(span.start, span.end)]
        last = next(own for own in whole if own.start <= pieces[-1].start < own.end)
        seen = [whole[last].prefix, last] if whole[last].prefix else [last]
        text = [ids[i] for part in seen if part for i in range(part.start, part.end)]
        assert tuple(text) == sequence.ids[: len(text)]  # what the tokens that are read can see, and nothing else


@given(st.lists(sequences(), min_size=1, max_size=12))
def test_a_prompt_is_computed_once(given: list[TokenSequence]) -> None:
    row = pack(given, share_prompts=True)
    prompts = {(s.prompt, tuple(s.types[: s.boundary])) for s in given}
    assert row.tokens == sum(len(prompt) for prompt, _ in prompts) + sum(len(s.ids) - s.boundary for s in given)
    assert row.ids.shape == row.positions.shape == (1, -(-row.tokens // STEP_TOKENS) * STEP_TOKENS)


@given(st.lists(sequences(), min_size=1, max_size=12), st.booleans())
def test_segments_cover_the_row_and_prefixes_come_first(given: list[TokenSequence], share: bool) -> None:
    row = pack(given, share_prompts=share)
    ends = [0, *(segment.own.end for segment in row.segments)]
    assert [segment.own.start for segment in row.segments] == ends[:-1]
    assert ends[-1] == row.tokens
    assert all(s.prefix is None or s.prefix.end <= s.own.start for s in row.segments)


@given(st.lists(sequences(), min_size=1, max_size=12), st.booleans(), st.integers(1, 9))
def test_an_uncounted_id_has_no_position_of_its_own(given: list[TokenSequence], share: bool, pad: int) -> None:
    row = pack(given, share_prompts=share, uncounted_id=pad)
    positions = row.positions[0].tolist()
    for sequence, pieces in zip(given, row.spans, strict=True):
        ids = torch.tensor([sequence.ids])
        expected = XLMRobertaEmbeddings.create_position_ids_from_input_ids(ids, pad)[0] - (pad + 1)
        read = [positions[i] for piece in pieces for i in range(piece.start, piece.end)]
        assert read == expected[sequence.score.start : sequence.score.end].tolist()


def test_a_prompt_that_begins_like_another_is_not_shared() -> None:
    row = pack([TokenSequence((1, 2, 9), 2, Span(2, 3)), TokenSequence((1, 9), 1, Span(1, 2))], share_prompts=True)
    assert row.tokens == 5


def test_nothing_cannot_be_packed_and_a_boundary_lies_inside() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        pack([], share_prompts=True)
    with pytest.raises(ValueError, match="boundary 3"):
        TokenSequence((1, 2), 3, Span(0, 1))
    with pytest.raises(ValueError, match="second segment 2"):
        TokenSequence((1, 2), 1, Span(0, 1), 2)


@given(given=st.lists(sequences(), min_size=1, max_size=6), share=st.booleans())
def test_what_is_read_is_found_again_among_the_tokens_that_are_read(given: list[TokenSequence], share: bool) -> None:
    row = pack(given, share_prompts=share)
    index, spans = select_read_tokens(row)
    assert len(index) % STEP_TOKENS == 0
    assert len(index) < sum(sequence.score.tokens for sequence in given) + STEP_TOKENS
    for sequence, pieces in zip(given, spans, strict=True):
        places = [int(place) for piece in pieces for place in index[piece.start : piece.end]]
        expected = sequence.ids[sequence.score.start : sequence.score.end]
        assert tuple(row.ids[0, places].tolist()) == expected
        assert row.positions[0, places].tolist() == list(range(sequence.score.start, sequence.score.end))
