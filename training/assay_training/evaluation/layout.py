"""Choose the column widths of a printed table, so that a line break never falls inside a number."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

MIN_TEXT_WIDTH = 8  # terminal cells; below, names are broken into so many lines that they cannot be read


@dataclass(frozen=True, slots=True)
class ColumnWidths:
    """The widths that a column can have, in terminal cells, from the most comfortable to the narrowest.

    Attributes:
        full: width of its heading and its longest cell, each on one line.
        headed: width with only the heading wrapped between words; the narrowest width of a column of numbers.
        worded: width with cells wrapped between words as well.
        least: width with words broken; equal to `headed` for numbers, which are never broken.
        wraps: whether the column holds texts, whose cells may be wrapped.
    """

    full: int
    headed: int
    worded: int
    least: int
    wraps: bool

    @classmethod
    def measure(cls, heading: str, cells: Sequence[str], *, wraps: bool) -> "ColumnWidths":
        """Measure a column.

        Args:
            heading: text above the column; a newline in it is a line break.
            cells: texts of the column.
            wraps: whether the cells may be wrapped.
        """
        longest = max((cell_len(cell) for cell in cells), default=0)
        headed = max(longest, *(cell_len(word) for word in heading.split()))
        full = max(longest, *(cell_len(line) for line in heading.splitlines()))
        if not wraps:
            return cls(full, headed, headed, headed, wraps)
        words = max(cell_len(word) for text in (heading, *cells) for word in text.split() or [""])
        return cls(full, headed, words, min(MIN_TEXT_WIDTH, words), wraps)


def fit_widths(columns: Sequence[ColumnWidths], room: int | None) -> list[int | None]:
    """Return the width of every column in terminal cells, or `None` for a column that is not shown.

    Headings are wrapped first, then texts, the widest column first. If that is not enough, columns of numbers are
    hidden, from the right. Columns of texts stay, since they say what a line is about. A table that still does not
    fit is wider than `room`.

    Args:
        columns: possible widths of each column.
        room: width of the terminal in cells, or `None` if lines may have any length.
    """
    shown = list(range(len(columns)))
    while True:
        widths = _shrink([columns[i] for i in shown], room)
        numbers = [i for i in shown if not columns[i].wraps]
        if room is None or compute_line_width(widths) <= room or len(numbers) < 2:
            break
        shown.remove(numbers[-1])
    by_column = dict(zip(shown, widths, strict=True))
    return [by_column.get(i) for i in range(len(columns))]


def compute_line_width(widths: Sequence[int]) -> int:
    """Return the width of a printed line: the columns, one blank between them and one at either end."""
    return sum(widths) + len(widths) + 1


def _shrink(columns: Sequence[ColumnWidths], room: int | None) -> list[int]:
    """Return the widths of columns that are all shown, no narrower than needed to fit."""
    widths = [column.full for column in columns]
    if room is None:
        return widths
    # Each stage costs more legibility than the one before, so it begins only when that one is exhausted.
    for least in (
        [column.headed for column in columns],
        [column.worded for column in columns],
        [column.least for column in columns],
    ):
        while compute_line_width(widths) > room:
            wider = [i for i, width in enumerate(widths) if width > least[i]]
            if not wider:
                break
            widths[max(wider, key=lambda i: widths[i])] -= 1
    return widths
