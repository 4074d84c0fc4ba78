"""Render rankings and labelled items as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.render import Renderer
from assay_training.records.record import Judged, Ranking

KEPT_PROMPT_TOKENS = 256  # tokens of the prompt that are kept if the completion is too long ([CRS] section 5.3) …
KEPT_PROMPT_SHARE = 0.5  # … but at most this share of max_length, for models with few positions


@dataclass(frozen=True, slots=True)
class Example:
    """A record as token ids, one sequence per completion.

    Attributes:
        record: ranking or labelled item.
        sequences: K token sequences, in the order of the record's items.
    """

    record: Judged
    sequences: tuple[TokenSequence, ...]

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all sequences."""
        return sum(len(sequence.ids) for sequence in self.sequences)


@dataclass(slots=True)
class RenderReport:
    """The numbers of items that were truncated, refused or dropped in rendering.

    Attributes:
        truncated_prompts: number of items whose prompt was truncated on the left.
        cut_completions: number of items whose completion was too long: truncated on the right, without end of turn.
        refused: numbers of records that the renderer refused, by error code; they are dropped.
        equal_ids: numbers of dropped pairs and ties whose two completions have equal token ids, by data set.
    """

    truncated_prompts: int = 0
    cut_completions: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    equal_ids: dict[str, int] = field(default_factory=dict)


def render_records(records: Sequence[Judged], renderer: Renderer) -> tuple[list[Example], RenderReport]:
    """Render the records as examples, in order, and count what was truncated, refused or dropped.

    A pair or tie of two completions with equal token ids is dropped from its ranking, because every model gives both
    the same logit. Ids may be equal because both were truncated at the same length, or because the template or the
    tokenizer drops the difference. A ranking without any other pair or tie is dropped as a whole.
    """
    report = RenderReport()
    examples = []
    for record in tqdm(records, desc="render", unit="records", mininterval=10):
        try:
            sequences = tuple(_render(item, renderer, report) for item in record.items)
        except ContentError as error:
            report.refused[error.code] = report.refused.get(error.code, 0) + 1
            continue
        kept = _drop_equal_ids(record, sequences, report) if isinstance(record, Ranking) else record
        if kept is not None:
            examples.append(Example(kept, sequences))
    return examples, report


def _drop_equal_ids(ranking: Ranking, sequences: Sequence[TokenSequence], report: RenderReport) -> Ranking | None:
    """Return the ranking without pairs and ties of equal ids, which are counted; None if none remain."""

    # Equal ids with different score spans have different logits: the span is part of the comparison.
    def differ(i: int, j: int) -> bool:
        return (sequences[i].ids, sequences[i].score) != (sequences[j].ids, sequences[j].score)

    pairs = tuple(pair for pair in ranking.pairs if differ(pair.better, pair.worse))
    ties = tuple(tie for tie in ranking.ties if differ(*tie))
    dropped = len(ranking.pairs) - len(pairs) + len(ranking.ties) - len(ties)
    if not dropped:
        return ranking
    report.equal_ids[ranking.data_set] = report.equal_ids.get(ranking.data_set, 0) + dropped
    return replace(ranking, pairs=pairs, ties=ties) if pairs or ties else None


def _render(item: Item, renderer: Renderer, report: RenderReport) -> TokenSequence:
    kept = min(KEPT_PROMPT_TOKENS, int(renderer.rules.max_length * KEPT_PROMPT_SHARE))
    rendered = renderer.render_within(item, kept)
    report.cut_completions += rendered.completion_cut
    report.truncated_prompts += rendered.truncated_tokens > 0
    return rendered.sequence
