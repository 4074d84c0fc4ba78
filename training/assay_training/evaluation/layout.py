"""How wide the columns of a printed table are, so that a line break never falls inside a number."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

LEAST_TEXT = 8  # terminal cells; a name that is folded more often than that cannot be read


@dataclass(frozen=True, slots=True)
class Extent:
    """The widths that a column can have, in terminal cells.

    Attributes:
        full: of its heading and its longest cell, each on one line.
        headed: where the heading alone is wrapped between words; the least width of a column of numbers.
        worded: where cells are wrapped between words as well.
        least: where words are folded; equal to `headed` for numbers, which are never broken.
        wraps: whether it holds texts, so that its cells may be wrapped.
    """

    full: int
    headed: int
    worded: int
    least: int
    wraps: bool

    @classmethod
    def of(cls, heading: str, cells: Sequence[str], *, wraps: bool) -> "Extent":
        """Measure a column.

        Args:
            heading: above it; a newline in it is a line break.
            cells: its texts.
            wraps: whether the cells may be wrapped.
        """
        longest = max((cell_len(cell) for cell in cells), default=0)
        headed = max(longest, *(cell_len(word) for word in heading.split()))
        full = max(longest, *(cell_len(line) for line in heading.splitlines()))
        if not wraps:
            return cls(full, headed, headed, headed, wraps)
        words = max(cell_len(word) for text in (heading, *cells) for word in text.split() or [""])
        return cls(full, headed, words, min(LEAST_TEXT, words), wraps)


def fit(columns: Sequence[Extent], room: int | None) -> list[int | None]:
    """Return the width of every column in terminal cells, `None` for one that is left out.

    Headings are wrapped first, then texts, widest column first. Where that is not enough, columns of numbers are left
    out from the right. Columns of texts stay, since they say what a line is about. What still does not fit is as
    wide as it has to be.

    Args:
        columns: what each needs.
        room: the width of the terminal in cells, or `None` where lines may have any length.
    """
    shown = list(range(len(columns)))
    while True:
        widths = _widths([columns[i] for i in shown], room)
        numbers = [i for i in shown if not columns[i].wraps]
        if room is None or line(widths) <= room or len(numbers) < 2:
            break
        shown.remove(numbers[-1])
    by_column = dict(zip(shown, widths, strict=True))
    return [by_column.get(i) for i in range(len(columns))]


def line(widths: Sequence[int]) -> int:
    """Return the width of a printed line: the columns, one blank between them and one at either end."""
    return sum(widths) + len(widths) + 1


def _widths(columns: Sequence[Extent], room: int | None) -> list[int]:
    widths = [column.full for column in columns]
    if room is None:
        return widths
    for least in (
        [column.headed for column in columns],
        [column.worded for column in columns],
        [column.least for column in columns],
    ):
        while line(widths) > room:
            wider = [i for i, width in enumerate(widths) if width > least[i]]
            if not wider:
                break
            widths[max(wider, key=lambda i: widths[i])] -= 1
    return widths
