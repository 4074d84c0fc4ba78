"""Read the paraphrases of badly rated completions, for the `augment` step of a mixture."""

from collections.abc import Iterable
from dataclasses import dataclass

from assay_service.scoring.item import Item, Message
from assay_training.records.plain import read_prompt
from assay_training.records.rows import Row

OTHER_LANGUAGE = 0.2  # the similarity of a paraphrase in another language ([CRS] section 5.3)


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """Another wording of a completion.

    Attributes:
        text: text of the paraphrase.
        similarity: cosine of the sentence embeddings of completion and paraphrase, in -1..1.
    """

    text: str
    similarity: float


def read_paraphrases(rows: Iterable[Row]) -> dict[Item, Paraphrase]:
    """Read paraphrases by the item that they paraphrase; `same_language: false` sets the similarity to 0.2.

    Raises:
        RecordError: a field is missing or out of range, or an item has two paraphrases.
    """
    paraphrases: dict[Item, Paraphrase] = {}
    for row in rows:
        item = Item((*read_prompt(row), Message("assistant", row.text("completion"))))
        similarity = row.get("similarity", float)
        if not -1 <= similarity <= 1:
            raise row.error(f"field 'similarity' is {similarity}, not in -1..1")
        if item in paraphrases:
            raise row.error("the item has a paraphrase already")
        same = row.get("same_language", bool) if "same_language" in row.fields else True
        paraphrases[item] = Paraphrase(row.text("paraphrase"), similarity if same else OTHER_LANGUAGE)
    return paraphrases
