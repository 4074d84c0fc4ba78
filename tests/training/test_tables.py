"""Printed tables: on 80 columns and in a pipe, a line break never falls inside a number."""

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from assay_client.client import RewardClient
from assay_training.evaluation.layout import ColumnWidths, compute_line_width, fit_widths
from tests.service.test_serve_process import ASSAY, served, wait_until_ready
from tests.training.test_judgments import ballots, key, poll, row, write
from tests.training.test_runs import CRS, written

PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline" / "service.yaml"
LONG = "a-model-whose-name-is-as-long-as-those-on-the-hub-are"


def printed(columns: int | None, *arguments: object) -> list[str]:
    """The lines of a real command whose output goes into a pipe, with COLUMNS or without."""
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    env |= {} if columns is None else {"COLUMNS": str(columns)}
    command = [str(ASSAY), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def table_of(lines: Sequence[str]) -> list[str]:
    """Headings, rule and cells, without the title above and the notes below."""
    blank = [i for i, text in enumerate(lines) if not text.strip()]
    return list(lines[blank[0] + 1 : blank[1]])


def numbers(lines: Sequence[str]) -> list[str]:
    """Every word of the cells that has a digit in it; names in these tests have none."""
    rule = next(i for i, text in enumerate(lines) if "───" in text)
    return re.findall(r"\S*\d\S*", "\n".join(lines[rule:]))


def check(*arguments: object) -> None:
    """On 80 columns the numbers are those of the pipe, whose lines are as wide as they have to be."""
    pipe, narrow = (table_of(printed(columns, *arguments)) for columns in (None, 80))
    assert max(len(text) for text in narrow) <= 80
    assert len(numbers(pipe)) > 2
    assert numbers(narrow) == numbers(pipe)
    width = len(pipe[-1].rstrip())
    assert all(len(text.rstrip()) <= width or "───" in text for text in pipe)


def test_win_rates(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [
        row(draw.choice([1, 2, 1.5]), i, output_1="a" * draw.randint(1, 300), output_2="b" * draw.randint(1, 300))
        | {"generator_2": LONG, "dataset": draw.choice(["helpful base", "selfinstruct"])}
        for i in range(1200)
    ]
    path = write(tmp_path / "x.json", rows)
    check("evaluate", "winrate", path, "--group-by", "dataset")


def test_votes(tmp_path: Path) -> None:
    """Methods and rules are texts."""
    cast = poll({"a": 1, "b": 2, "c": 3}, {"a": 2, "b": 3, "c": 1})
    files = (ballots(tmp_path / "one.json", cast), ballots(tmp_path / "two.json", cast))
    check("evaluate", "vote", *files, "--keys", key(tmp_path, a=LONG, b="pref", c="sft"))


def test_errors_of_absolute_rewards(tmp_path: Path) -> None:
    rows = [{"label": i % 11 / 10, "prediction": i * 1e6} for i in range(1200)]
    folder = tmp_path / ("predictions " * 7).strip()
    folder.mkdir()
    (tmp_path / "short.json").symlink_to(write(folder / "x.json", rows))
    lines = table_of(printed(80, "evaluate", "absolute", folder / "x.json"))
    assert max(map(len, lines)) <= 80
    wide = table_of(printed(None, "evaluate", "absolute", tmp_path / "short.json"))
    values = [word for word in numbers(wide) if re.fullmatch(r"\d+(\.\d+)?", word)]
    assert [word for word in numbers(lines) if word in set(values)] == values


def test_runs_of_all_kinds(tmp_path: Path) -> None:
    """Ten columns, a name of several folders; the step says how far it is."""
    for name in ("first", "second"):
        run = written(tmp_path / name / LONG, [1.0], {"reward": CRS, "steps": 12345}, finished=False)
        step = {"part": "ppo", "step": 0, "score": -123.4567, "kl": 12.5, "length": 1024, "eos_rate": 0.5}
        (run / "metrics.jsonl").write_text(json.dumps(step | {"entropy": 10.5, "loss": -12.891}) + "\n")
    check("report", tmp_path / "first" / LONG, tmp_path / "second" / LONG)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(PIPELINE) as (url, process), RewardClient(url) as client:
        wait_until_ready(client, process)
        yield url


@pytest.mark.slow
def test_tables_of_a_service(url: str, tmp_path: Path) -> None:
    """The names of its models and of the source are short or long."""
    answers = ("In a bag.", "I do not know.", "Well, that depends.")
    asked = [f"How do I keep {thing}?" for thing in ("bread", "a cat", "time", "quiet")]
    pairs = [
        {"prompt": q, "chosen": answers[i % 3], "rejected": answers[(i + 1) % 3], "gap": 0.9, "subset": "ab"[i % 2]}
        for i, q in enumerate(asked)
    ]
    labels = [{"prompt": q, "completion": a, "label": k / 2} for q in asked for k, a in enumerate(answers)]
    for command, format_, rows in (
        ("agreement", "preferences", pairs),
        ("margins", "preferences", pairs),
        ("best-of-n", "labels", labels),
    ):
        path = tmp_path / f"{format_}-of-a-set-with-a-name.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        check("evaluate", command, f"{format_}:{path}", "--url", url)
    check(
        "evaluate",
        "agreement",
        f"preferences:{tmp_path / 'preferences-of-a-set-with-a-name.jsonl'}",
        "--url",
        url,
        "--group-by",
        "subset",
    )


def test_a_terminal_too_narrow_for_all_columns_says_which_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [row(2, i) for i in range(1000)])
    lines = printed(40, "evaluate", "winrate", path)
    assert max(map(len, lines)) <= 40
    assert "Too narrow for p, longer wins, at equal length, 95 %: use a wider terminal, a pipe or --json." in " ".join(
        " ".join(lines).split()
    )
    words = numbers(table_of(lines))
    assert (words[0], words[1]) == ("1000", "100.0%")


described = st.tuples(
    st.sampled_from(["n", "row wins", "at equal length", "over\nlength", "model"]),
    st.lists(st.text("ab /é漢", min_size=1, max_size=30), max_size=4),
    st.booleans(),
)


@given(st.lists(described, min_size=1, max_size=10), st.integers(1, 120))
def test_no_number_is_narrower_than_its_column(given_: list[tuple[str, list[str], bool]], room: int) -> None:
    columns = [ColumnWidths.measure(heading, cells, wraps=wraps) for heading, cells, wraps in given_]
    widths = fit_widths(columns, room)
    shown = [column for column, width in zip(columns, widths, strict=True) if width is not None]
    for (_, cells, wraps), width in zip(given_, widths, strict=True):
        assert width is not None or not wraps
        if width is not None and not wraps:
            assert all(cell_len(cell) <= width for cell in cells)
    if len(shown) < len(columns):  # no column is dropped without need
        assert compute_line_width([column.least for column in columns]) > room
    if compute_line_width([column.least for column in shown]) <= room:
        assert compute_line_width([width for width in widths if width is not None]) <= room
    assert fit_widths(columns, None) == [column.full for column in columns]
