"""Records as ids, and how they are cut into forwards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from assay_service.errors import ContentError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.layout import Sequence as Ids
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer
from assay_training.config import Optimiser
from assay_training.records import Record


@dataclass(frozen=True, slots=True)
class Example:
    """A record as ids: one sequence per completion."""

    record: Record
    sequences: tuple[Ids, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.ids) for sequence in self.sequences)


@dataclass(slots=True)
class RenderReport:
    """What happened to the records on their way to ids.

    Attributes:
        truncated_prompts: items whose prompt was cut from the left.
        cut_completions: items whose completion alone was too long; cut on the right, without end of turn.
        refused: items that the renderer refused, by error code; their records are dropped.
    """

    truncated_prompts: int = 0
    cut_completions: int = 0
    refused: dict[str, int] = field(default_factory=dict)


def render_records(records: Sequence[Record], renderer: Renderer) -> tuple[list[Example], RenderReport]:
    """Records to examples, in order, with a count of what was cut or refused."""
    report = RenderReport()
    examples = []
    for record in tqdm(records, desc="render", unit="records"):
        try:
            sequences = tuple(_render(item, renderer, report) for item in record.items)
        except ContentError as error:
            report.refused[error.code] = report.refused.get(error.code, 0) + 1
            continue
        examples.append(Example(record, sequences))
    return examples, report


def token_batches(indices: Sequence[int], examples: Sequence[Example], limit_tokens: int) -> Iterator[list[int]]:
    """Cuts `indices` into runs of at most `limit_tokens`, never splitting an example."""
    part: list[int] = []
    tokens = 0
    for i in indices:
        if part and tokens + examples[i].tokens > limit_tokens:
            yield part
            part, tokens = [], 0
        part.append(i)
        tokens += examples[i].tokens
    if part:
        yield part


def autocast(model: RewardModel, settings: Optimiser) -> torch.autocast:
    """Matrix products in `settings.compute_dtype`; the head stays in fp32."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=settings.compute_dtype == "bfloat16")


def _render(item: Item, renderer: Renderer, report: RenderReport) -> Ids:
    """The ids of `item`; a completion that does not fit by itself is cut on the right and has no end of turn."""
    report.cut_completions += (fitting := _fitting(item, renderer)) is not item
    rendered = renderer.render(fitting, "prompt_left")
    report.truncated_prompts += rendered.truncated_tokens > 0
    return rendered.sequence


def _fitting(item: Item, renderer: Renderer) -> Item:
    """`item`, or as much of it as fits without any prompt."""
    try:
        renderer.render(item, "prompt_left")
    except ContentError as error:
        if error.code != "completion_too_long":
            raise
        return _fitting(_shortened(item), renderer)
    return item


def _shortened(item: Item) -> Item:
    """The item with the last eighth of its completion's characters cut off, unfinished."""
    text = item.completion[: len(item.completion) * 7 // 8]
    return Item((*item.prompt, Message("assistant", text)), "length")
