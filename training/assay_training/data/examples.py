"""Render rankings and labelled items as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.render import Renderer
from assay_training.records.record import Judged, Ranking

KEPT_PROMPT_TOKENS = 256  # of a prompt stay where the completion is too long ([CRS] section 5.3) …
KEPT_PROMPT_SHARE = 0.5  # … but not more than this share of a short model's length


@dataclass(frozen=True, slots=True)
class Example:
    """A record as ids: one sequence per completion."""

    record: Judged
    sequences: tuple[TokenSequence, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.ids) for sequence in self.sequences)


@dataclass(slots=True)
class RenderReport:
    """What happened to the records on their way to ids.

    Attributes:
        truncated_prompts: items whose prompt was cut from the left.
        cut_completions: items whose completion was too long; cut on the right, without end of turn.
        refused: records that the renderer refused, by error code; they are dropped.
        equal_ids: pairs and ties of two completions whose ids are equal, by data set; they are dropped.
    """

    truncated_prompts: int = 0
    cut_completions: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    equal_ids: dict[str, int] = field(default_factory=dict)


def render_records(records: Sequence[Judged], renderer: Renderer) -> tuple[list[Example], RenderReport]:
    """Return the records as examples, in order, with a count of what was cut, refused or left out.

    A pair of two completions with equal ids is left out of its ranking, and so is a tie: every model gives both the
    same logit. The ids may be equal because both were cut at the same length, or because the template or the
    tokenizer drops what differs. A ranking without any other pair or tie is left out as a whole.
    """
    report = RenderReport()
    examples = []
    for record in tqdm(records, desc="render", unit="records", mininterval=10):
        try:
            sequences = tuple(_render(item, renderer, report) for item in record.items)
        except ContentError as error:
            report.refused[error.code] = report.refused.get(error.code, 0) + 1
            continue
        kept = _without_equal_ids(record, sequences, report) if isinstance(record, Ranking) else record
        if kept is not None:
            examples.append(Example(kept, sequences))
    return examples, report


def _without_equal_ids(ranking: Ranking, sequences: Sequence[TokenSequence], report: RenderReport) -> Ranking | None:
    """Return the ranking without pairs and ties of equal ids, which are counted; None if that leaves neither."""

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
