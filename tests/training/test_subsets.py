"""Lines by a field of the rows, and the forms in which files of judged completions come."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from assay_client.client import RewardClient
from assay_service.scoring.item import Item, Message
from assay_training.evaluation.rewards.agreement import tabulate_agreement
from assay_training.evaluation.rewards.best_of_n import tabulate_best_of_n
from assay_training.evaluation.rewards.inputs import Candidates, read_candidates, read_comparisons
from assay_training.evaluation.rewards.options import ReadOptions, parse_fields
from assay_training.records.record import Ranking, RecordError
from tests.service.test_serve_process import served, wait_until_ready
from tests.training.test_judgments import evaluate, row, write

PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline" / "service.yaml"


def reward_bench(count: int = 12) -> list[dict[str, Any]]:
    """Rows with the fields of `allenai/reward-bench`."""
    subsets = ("alpacaeval-easy", "hep-cpp", "donotanswer")
    return [
        {"id": i, "subset": subsets[i % 3], "prompt": f"How do I keep {i}?", "chosen_model": "x", "rejected_model": "y"}
        | {"chosen": "In a bag.", "rejected": "I do not know."}
        for i in range(count)
    ]


def test_every_value_of_the_field_is_a_source(tmp_path: Path) -> None:
    read = read_comparisons(f"preferences:{write(tmp_path / 'rb.json', reward_bench())}", ReadOptions(by="subset"))
    assert [(r.source, r.group) for r in read.records[:5]] == [
        ("rb.json/alpacaeval-easy", f"how do i keep {i}") for i in (0, 3, 6, 9)
    ] + [("rb.json/hep-cpp", "how do i keep 1")]
    (line,) = read.report_lines()
    assert line.startswith("rb.json: 12 rows;")  # of all parts together
    assert "ignored: id" in line
    assert "subset" not in line  # it is not ignored here


def test_accuracy_by_subset_and_over_all(tmp_path: Path) -> None:
    """4, 3 and 1 of four right: each with its interval by prompt, and 8 of 12 over all."""
    read = read_comparisons(f"preferences:{write(tmp_path / 'rb.json', reward_bench())}", ReadOptions(by="subset"))
    right = {"alpacaeval-easy": 4, "hep-cpp": 3, "donotanswer": 1}
    seen: dict[str, int] = {}

    def scores(ranking: Ranking) -> list[float]:
        subset = ranking.source.partition("/")[2]
        seen[subset] = seen.get(subset, 0) + 1
        better = ranking.pairs[0].better
        return [float((k == better) == (seen[subset] <= right[subset])) for k in range(2)]

    table = tabulate_agreement(read.records, {"m": [scores(ranking) for ranking in read.records]})
    found = {r["source"]: r for r in table.records if r["model"] == "m" and r["strength"] is None}
    assert {name: (numbers["n"], numbers["accuracy"]) for name, numbers in found.items()} == {
        "rb.json/alpacaeval-easy": (4, 1.0),
        "rb.json/hep-cpp": (4, 0.75),
        "rb.json/donotanswer": (4, 0.25),
        "rb.json (all)": (12, pytest.approx(2 / 3)),
        "all": (12, pytest.approx(2 / 3)),
    }
    # Wilson's intervals for 4 of 4 and 8 of 12 by hand, with z = 1.959964
    assert found["rb.json/alpacaeval-easy"]["ci95"] == pytest.approx([0.510109, 1.0], abs=1e-6)
    assert found["all"]["ci95"] == pytest.approx([0.390622, 0.861880], abs=1e-6)


def test_a_row_without_the_field_is_in_a_part_of_its_own(tmp_path: Path) -> None:
    rows = reward_bench(3)
    rows[1]["subset"] = None
    del rows[2]["subset"]
    found = read_comparisons(f"preferences:{write(tmp_path / 'rb.json', rows)}", ReadOptions(by="subset")).records
    assert [r.source for r in found] == ["rb.json/alpacaeval-easy", "rb.json/no subset", "rb.json/no subset"]


def test_verdicts_rankings_and_labels_have_parts_too(tmp_path: Path) -> None:
    verdicts = [row(2, i, dataset="ab"[i % 2]) for i in range(3)] + [row(None, 3, dataset="b")]
    read = read_comparisons(f"alpaca_eval:{write(tmp_path / 'v.json', verdicts)}", ReadOptions(by="dataset"))
    assert [r.source for r in read.records] == ["v/a", "v/b", "v/a"]
    assert read.dropped == {"v.json: no verdict": 1}
    rankings = [{"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "meta": {"turn": i}} for i in (1, 2)]
    read = read_comparisons(f"rankings:{write(tmp_path / 'r.json', rankings)}", ReadOptions(by="meta.turn"))
    assert [r.source for r in read.records] == ["r.json/1", "r.json/2"]
    labels = [
        {"prompt": "q", "completion": c, "label": v, "set": s}
        for c, v, s in (("a", 0.0, "x"), ("b", 1.0, "x"), ("a", 1.0, "y"), ("c", 0.5, "y"), ("d", 0.5, "y"))
    ]
    found = read_candidates(f"labels:{write(tmp_path / 'l.json', labels)}", ReadOptions(by="set")).records
    assert [(c.source, c.gold) for c in found] == [("l.json/x", (0.0, 1.0)), ("l.json/y", (1.0, 0.5, 0.5))]
    rollouts = [{"prompt": "q", "completions": ["a", "b"], "set": s} for s in "xy"]
    found = read_candidates(f"completions:{write(tmp_path / 'c.json', rollouts)}", ReadOptions(by="set")).records
    assert [c.source for c in found] == ["c.json/x", "c.json/y"]


def test_a_field_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rb.json", reward_bench())
    with pytest.raises(RecordError, match=r"rb\.json: row 1: no row has a field 'subsets' to group by; fields: id, s"):
        read_comparisons(f"preferences:{path}", ReadOptions(by="subsets"))
    votes = write(tmp_path / "v.json", {"format": "assay-ballots", "prompts": []})
    code, output = evaluate("agreement", f"ballots:{votes}", "--group-by", "subset")
    assert (code, "ballots have no fields to group by; omit --group-by" in output) == (2, True), output


NAMES = ("--field", "prompt=question", "--field", "chosen=good", "--field", "rejected=bad")


def test_fields_have_other_names_and_margins_are_gaps(tmp_path: Path) -> None:
    """What the YAML of a run's source declares; here by options."""
    rows = [{"question": "q", "good": "a", "bad": "b", "margin": m} for m in (3, 1)]
    given = f"preferences:{write(tmp_path / 'x.json', rows)}"
    names = parse_fields(["prompt=question", "chosen=good", "rejected=bad"])
    found = read_comparisons(given, ReadOptions(largest_gap=4, fields=names)).records
    assert [(r.completions, r.pairs[0].gap) for r in found] == [(("a", "b"), 0.75), (("a", "b"), 0.25)]
    dropped = read_comparisons(given, ReadOptions(fields=names | parse_fields(["margin="]))).records
    assert [r.pairs[0].gap for r in dropped] == [None, None]
    for options, message in (
        (("--field", "prompt"), "--field prompt: not of the form NAME=FIELD, as in prompt=question"),
        (
            ("--field", "prompts=question"),
            "--field prompts is not a field of preferences; its fields are prompt, chosen",
        ),
        (("--largest-gap", "-1"), "--largest-gap: must be more than 0, and is -1"),
        (NAMES, "drop the field with `fields: {margin: null}` (`--field margin=` of `assay evaluate`)"),
        (
            (*NAMES, "--field", "system=nothing"),
            "field 'nothing', which `fields` (`--field` of `assay evaluate`) names, is missing",
        ),
    ):
        code, output = evaluate("agreement", given, *options)
        assert (code, message in output) == (2, True), output


def test_options_that_a_format_does_not_take_are_errors(tmp_path: Path) -> None:
    """They would otherwise be ignored silently."""
    verdicts = write(tmp_path / "v.json", [row(2)])
    rollouts = write(tmp_path / "c.json", [{"prompt": q, "completions": ["a", "b"]} for q in "qr"])
    for command, given in (("agreement", f"alpaca_eval:{verdicts}"), ("best-of-n", f"completions:{rollouts}")):
        code, output = evaluate(command, given, "--field", "prompt=question")
        assert (
            code,
            "this format does not take --field and --largest-gap; evaluate it in a command of its own" in output,
        ) == (2, True)
    code, output = evaluate("agreement", f"hh:{verdicts}", "--largest-gap", "9")
    assert (code, "--largest-gap is for format preferences, not hh" in output) == (2, True), output


def test_a_prompt_with_one_completion_is_counted(tmp_path: Path) -> None:
    labels = [{"prompt": p, "completion": c, "label": 0.5} for p, c in (("q", "a"), ("q", "b"), ("r", "a"))]
    read = read_candidates(f"labels:{write(tmp_path / 'l.json', labels)}")
    assert len(read.records) == 1
    assert read.dropped == {"l.json: the only completion of its prompt": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pairs:x.json", "the format 'pairs' is now called 'preferences'; write preferences:x.json"),
        ("x.json", "not of the form FORMAT:PATH (as in preferences:x.json); FORMAT is one of"),
    ],
)
def test_an_unknown_format_is_an_error(given: str, message: str) -> None:
    code, output = evaluate("agreement", given)
    assert (code, message in output) == (2, True), output


def test_the_best_of_n_over_all_parts_of_a_file() -> None:
    def candidates(source: str, i: int, gold: tuple[float, ...]) -> Candidates:
        return Candidates(source, f"g{i}", tuple(Item.of("q", "x" * (k + 1)) for k in range(len(gold))), gold)

    prompts = [candidates("f/a", 0, (0.0, 1.0)), candidates("f/b", 1, (1.0, 0.0)), candidates("f/b", 2, (1.0, 0.0))]
    table = tabulate_best_of_n(prompts, None, {"m": [[0.0, 1.0]] * 3})
    assert {(r["source"], r["n"]): (r["prompts"], r["gold"]) for r in table.records if r["model"] == "m"} == {
        ("f/a", 1): (1, 0.5), ("f/b", 1): (2, 0.5), ("f (all)", 1): (3, 0.5),
        ("f/a", 2): (1, 1.0), ("f/b", 2): (2, 0.0), ("f (all)", 2): (3, pytest.approx(1 / 3)),
    }  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\r\n\n" for one in rows).encode()


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "x.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "x.jsonl": lines,
    "x.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "x.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "x.lines.json": lines,
    "x.bom.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_command_reads_every_form_of_file(name: str, tmp_path: Path) -> None:
    """Lists, lines with blank ones between, gzipped or not: the same numbers from all of them."""

    def put(folder: str, rows: list[dict[str, Any]]) -> Path:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(FORMS[name](rows))
        return tmp_path / folder / name

    verdicts = put("verdicts", [row(2, 0, dataset="a"), row(1, 1, dataset="b"), row(2, 2, dataset="a")])
    code, output = evaluate("winrate", verdicts, "--groups", verdicts, "--json")
    assert code == 0, output
    assert {r["group"]: r["win_rate"] for r in json.loads(output) if r["row"] == "new"} == {
        None: pytest.approx(2 / 3),
        "a": 1,
        "b": 0,
    }
    qualities = put("qualities", [{"label": 1.0, "prediction": 0.5}, {"label": 0.0, "prediction": 0.5}])
    code, output = evaluate("absolute", qualities, "--json")
    assert (code, {r["mse"] for r in json.loads(output)}) == (0, {0.25})
    for given in (str(verdicts), str(verdicts.parent)):
        assert len(read_comparisons(f"alpaca_eval:{given}").records) == 3
    pairs = put("pairs", reward_bench(3))
    for given in (str(pairs), str(pairs.parent)):
        assert len(read_comparisons(f"preferences:{given}").records) == 3
    rollouts = put("rollouts", [{"prompt": q, "completions": ["a", "b"]} for q in "qr"])
    assert len(read_candidates(f"completions:{rollouts}").records) == 2


USER, SAYS = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
TURNS = (Message("user", "Why?"), Message("assistant", "So."), Message("user", "And?"))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [USER, SAYS, {"role": "user", "content": "And?"}], "chosen": "Yes.", "rejected": "No."},
        {
            side: [USER, SAYS, {"role": "user", "content": "And?"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "Yes."), ("rejected", "No."))
        },
    ],
)
def test_conversations_are_scored_as_conversations(fields: dict[str, Any], tmp_path: Path) -> None:
    """A prompt of several turns, given apart or as the common beginning of both sides."""
    (found,) = read_comparisons(f"preferences:{write(tmp_path / 'x.json', [fields])}").records
    assert [item.messages for item in found.items] == [(*TURNS, Message("assistant", text)) for text in ("No.", "Yes.")]
    assert [found.completions[pair.better] for pair in found.pairs] == ["Yes."]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(PIPELINE) as (url, process), RewardClient(url) as client:
        wait_until_ready(client, process)
        yield url


@pytest.mark.slow
def test_a_subset_has_the_numbers_of_a_file_of_its_own(url: str, tmp_path: Path) -> None:
    """Conversations of several turns, by a real service: one file with --group-by, and a file per subset."""
    answers = ["In a bag.", "I do not know.", "Well, that depends.", "No.", "Ask a friend who knows."]
    rows = [
        one
        | {"prompt": [USER, SAYS, {"role": "user", "content": one["prompt"]}]}
        | {"chosen": answers[i % 5], "rejected": answers[(i * 2 + 1) % 5]}
        for i, one in enumerate(reward_bench(60))
        if answers[i % 5] != answers[(i * 2 + 1) % 5]
    ]

    def found(*given: object) -> dict[tuple[str, str], list[Any]]:
        code, output = evaluate("agreement", *given, "--url", url, "--json")
        assert code == 0, output
        return {
            (r["source"].partition("/")[2] or r["source"], r["model"]): [r["n"], r["accuracy"], r["ci95"], r["kappa"]]
            for r in json.loads(output)
        }

    together = found(f"preferences:{write(tmp_path / 'all.json', rows)}", "--group-by", "subset")
    for subset in ("alpacaeval-easy", "hep-cpp", "donotanswer"):
        alone = found(f"preferences:{write(tmp_path / subset, [r for r in rows if r['subset'] == subset])}")
        for model in ("preference", "absolute", "crs", "length"):
            assert together[subset, model] == alone["all", model]
    whole = found(f"preferences:{tmp_path / 'all.json'}")
    assert all(together["all", model] == whole["all", model] for model in ("preference", "absolute", "crs", "length"))
