"""`assay evaluate winrate`, `vote` and `absolute`: files to tables, and errors of malformed files."""

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from assay_training.cli.main import app
from assay_training.evaluation.judgments.instructions import strip_markup


def evaluate(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    # Progress goes to stderr, which is part of the output.
    return result.exit_code, result.stdout if "--json" in arguments and result.exit_code == 0 else result.output


def records(*arguments: Any) -> list[dict[str, Any]]:
    code, output = evaluate(*arguments, "--json")
    assert code == 0, output
    found: list[dict[str, Any]] = json.loads(output)
    return found


def write(path: Path, value: Any) -> Path:
    content = json.dumps(value).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def row(preference: Any, i: int = 0, **changes: Any) -> dict[str, Any]:
    models = {"generator_1": "base", "generator_2": "new"}
    return (
        {"instruction": f"question {i}", "output_1": "a", "output_2": "bb", "preference": preference} | models | changes
    )


def record(found: list[dict[str, Any]], first: str, second: str, group: str | None = None) -> dict[str, Any]:
    (one,) = [r for r in found if (r["row"], r["column"], r["group"]) == (first, second, group)]
    return one


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_win_rates_both_ways(name: str, tmp_path: Path) -> None:
    """2 and "2" are wins of output_2, 1.5 and 0 draws, 1.75 three quarters of one."""
    rows = [row(value, i) for i, value in enumerate([2, "2", 1, 1.5, 0, 1.75])]
    found = records("winrate", write(tmp_path / name, rows))
    forth, back = record(found, "new", "base"), record(found, "base", "new")
    assert (forth["win_rate"], forth["n"], forth["wins"], forth["draws"], forth["losses"]) == (3.75 / 6, 6, 3, 2, 1)
    assert back["win_rate"] == pytest.approx(1 - forth["win_rate"])
    assert back["ci95"] == pytest.approx([1 - forth["ci95"][1], 1 - forth["ci95"][0]])
    assert back["p_value"] == forth["p_value"]
    assert forth["longer_wins"] == back["longer_wins"] == pytest.approx(3.75 / 6)


def test_a_group_without_a_rate_at_equal_length_does_not_stop_the_others(tmp_path: Path) -> None:
    """Of one group tanh tells no lengths apart, a singular fit; the other has ten verdicts of both signs."""
    lengths = [(0, 285), (0, 333), (0, 296), *((200, 100 + 20 * i) for i in range(10))]
    rows = [
        row(2 if i in {2, 4, 5, 8, 9, 11} else 1, i, output_1="a" * first, output_2="b" * second)
        for i, (first, second) in enumerate(lengths)
    ]
    groups = {f"question {i}": "small" if i < 3 else "large" for i in range(13)}
    files = write(tmp_path / "x.json", rows)
    found = records("winrate", files, "--groups", write(tmp_path / "groups.json", groups))
    small, large = (record(found, "new", "base", group) for group in ("small", "large"))
    assert (small["n"], small["win_rate"]) == (3, pytest.approx(1 / 3))
    assert (small["length_controlled"], small["length_controlled95"]) == (None, None)
    assert (large["n"], large["win_rate"], large["length_controlled"]) == (10, 0.5, pytest.approx(0.5, abs=0.1))


def test_the_other_model_is_named_by_the_file_or_the_option(tmp_path: Path) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "generator": "new", "preference": 2}
    by_file = records("winrate", write(tmp_path / "old_vs_new.json.gz", [bare]))
    assert record(by_file, "new", "old")["win_rate"] == 1
    flagged = records("winrate", write(tmp_path / "verdicts.json", [bare]), "--reference", "gpt4")
    assert record(flagged, "new", "gpt4")["win_rate"] == 1
    code, output = evaluate("winrate", write(tmp_path / "final_old_vs_new2.json", [bare]))
    assert (code, "row 1: field 'generator_1' is missing" in output) == (2, True)
    half = write(tmp_path / "x_vs_y.json", [bare | {"generator_1": "base"}])
    assert record(records("winrate", half), "new", "base")["n"] == 1


@pytest.mark.parametrize(
    ("name", "generator", "other"),
    [
        ("final_rank002_vs_abs002.json.gz", "rank_002", "abs002"),
        ("final_sft_vs_crs025.json", "crs_025", "final_sft"),
        ("2024_run_GPT-4o_vs_llama.json", "gpt4o", "llama"),
        ("a_vs_b.jsonl", "A", "b"),
    ],
)
def test_a_files_name_may_spell_models_differently(name: str, generator: str, other: str, tmp_path: Path) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "generator": generator, "preference": 2}
    path = write(tmp_path / name, bare if name.endswith("l") else [bare | {"generator_1": None}])
    assert record(records("winrate", path), generator, other)["win_rate"] == 1
    assert record(records("winrate", path, "--reference", other), generator, other)["win_rate"] == 1


@pytest.mark.parametrize("name", ["x_vs_y_vs_new.json", "new_vs_new.json", "anew_vs_b.json", "b_vs_x_new.json"])
def test_a_files_name_without_the_model_is_an_error(name: str, tmp_path: Path) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "generator": "new", "preference": 2}
    code, output = evaluate("winrate", write(tmp_path / name, [bare]))
    assert (code, "row 1: field 'generator_1' is missing" in output) == (2, True), output


def test_a_reference_that_the_files_name_contradicts_is_an_error(tmp_path: Path) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "generator": "new", "preference": 2}
    code, output = evaluate("winrate", write(tmp_path / "old_vs_new.json", [bare]), "--reference", "gpt4")
    assert (code, "neither of which is --reference gpt4" in output) == (2, True), output


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json"])
def test_json_lines_are_read(name: str, tmp_path: Path) -> None:
    def lines(*rows: Any) -> Path:
        content = "".join(json.dumps(one) + "\n" for one in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return tmp_path / name

    assert record(records("winrate", lines(row(2), row(1, 1))), "new", "base")["n"] == 2
    code, output = evaluate("winrate", lines(row(2), row(3, 1)))
    assert (code, f"{name}:2: field 'preference' is 3" in output) == (2, True), output


@pytest.mark.parametrize("command", ["winrate", "vote", "judge", "task"])
def test_outputs_do_not_overwrite_inputs(command: str, tmp_path: Path) -> None:
    """And no plain text into a .gz; before anything is asked, as no endpoint is there."""
    read = ballots(tmp_path / "x.json", poll({"a": 1, "b": 2, "c": 3}))
    options: tuple[Any, ...] = ("--keys", key(tmp_path), "--html") if command == "vote" else ("--html",)
    if command != "vote":
        write(tmp_path / "x.json", [row(2)])
    if command == "judge":
        options = ("--url", "http://127.0.0.1:9/v1", "--model", "j", "--out")
    if command == "task":
        options = ("--keys", tmp_path / "names.json", "--out")
    before = read.read_bytes()
    for out, message in ((read, "already reads or writes this file"), (tmp_path / "y.gz", "the output is plain text")):
        code, output = evaluate(command, read, *options, out)
        assert (code, message in output) == (2, True), output
    if command == "judge":
        code, output = evaluate(command, read, *options, tmp_path / "v.json", "--html", tmp_path / "v.json")
        assert (code, "already reads or writes this file" in output) == (2, True), output
    assert read.read_bytes() == before


def test_groups_are_found_without_chat_markup(tmp_path: Path) -> None:
    asked = ["What is  1 < 2?", "Say hi.\nTwice."]
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in asked]
    groups = [{"instruction": p, "dataset": d, "category": "creative"} for p, d in zip(prompts, "ab", strict=True)]
    files = write(tmp_path / "x.json", [row(2, instruction=asked[0]), row(1, instruction=asked[1])])
    found = records("winrate", files, "--groups", write(tmp_path / "groups.json", groups))
    rates = {r["group"]: (r["win_rate"], r["n"]) for r in found if r["row"] == "new"}
    assert rates == {
        None: (0.5, 2),
        "a": (1, 1),
        "b": (0, 1),
        "creative": (0.5, 2),
        "a / creative": (1, 1),
        "b / creative": (0, 1),
    }
    same = [group | {"dataset": "creative"} for group in groups]
    found = records("winrate", files, "--groups", write(tmp_path / "same.json", same))
    counts = {r["group"]: r["n"] for r in found if r["row"] == "new"}
    assert counts == {
        None: 2,
        "dataset=creative": 2,
        "category=creative": 2,
        "dataset=creative / category=creative": 2,
    }
    code, output = evaluate("winrate", files, "--groups", write(tmp_path / "fewer.json", groups[:1]))
    assert (code, "x.json: row 2: field 'instruction'" in output) == (2, True)


def counts_by_group(tmp_path: Path, groups: Any, name: str = "groups.json") -> dict[str | None, int]:
    """Verdicts on the questions 0, 1 and 2 by group."""
    files = write(tmp_path / "x.json", [row(2, i) for i in range(3)])
    found = records("winrate", files, "--groups", write(tmp_path / name, groups))
    return {r["group"]: r["n"] for r in found if r["row"] == "new"}


def test_fields_that_share_a_value_are_named_in_every_row(tmp_path: Path) -> None:
    """In one row it is the same word, in another the word of the other way."""
    kinds = [("creative", "creative"), ("koala", "creative"), ("koala", "fact")]
    rows = [{"instruction": f"question {i}", "dataset": d, "category": c} for i, (d, c) in enumerate(kinds)]
    assert counts_by_group(tmp_path, rows) == {
        None: 3, "dataset=creative": 1, "dataset=koala": 2, "category=creative": 2, "category=fact": 1,
        "dataset=creative / category=creative": 1, "dataset=koala / category=creative": 1,
        "dataset=koala / category=fact": 1,
    }  # fmt: skip


def test_a_row_may_lack_a_group_and_have_an_id(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": i, "number": 1.5, "input": "", "dataset": "a"} for i in range(3)]
    rows[0]["id"] = "r0"
    rows[0]["category"] = None
    rows[1]["category"] = "c"
    distinct = [one | {"instruction": f"question {i}"} for i, one in enumerate(rows)]
    assert counts_by_group(tmp_path, distinct) == {None: 3, "a": 3, "c": 1, "a / c": 1}


def test_groups_may_be_one_object(tmp_path: Path) -> None:
    groups: dict[str, Any] = {"<s>[INST] question 0 [/INST]": "a", "question 1": ["a", "b"], "question 2": None}
    assert counts_by_group(tmp_path, groups) == {None: 3, "a": 2, "b": 1}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "groups.json: the file has no groups"),
        ({}, "groups.json: the file has no groups"),
        ([{"instruction": "q", "id": 3}], "groups.json: the file has no groups"),
        ({"q": 3}, "groups.json: 'q': its group must be a text"),
        ([{"instruction": "q", "dataset": ["a"]}], "groups.json: the file has no groups: a group is one line of"),
        ([{"prompt": "q", "dataset": "a"}], "groups.json: row 1: field 'instruction' is not a str"),
    ],
)
def test_malformed_groups_are_errors(groups: Any, message: str, tmp_path: Path) -> None:
    files = write(tmp_path / "x.json", [row(2)])
    code, output = evaluate("winrate", files, "--groups", write(tmp_path / "groups.json", groups))
    assert (code, message in output) == (2, True), output


@pytest.mark.parametrize(
    "marked",
    [
        "<|im_start|>user\nAre you <b>there</b>?<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Are you <b>there</b>? [/INST]",
        "\n\nHuman: Are you <b>there</b>?\n\nAssistant:",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nAre you <b>there</b>?<|eot_id|>",
        "<start_of_turn>user\nAre you <b>there</b>?<end_of_turn>\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAre you <b>there</b>?<|im_end|><PAD><PAD>",
        "<|im_start|>Are you <b>there</b>?",
        "USER: Are you <b>there</b>?\nASSISTANT:",
        "### Instruction:\nAre you <b>there</b>?\n\n### Response:",
        "<bos>Are you <b>there</b>?<eos>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAre you <b>there</b>?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBe brief.<|eot|>"
        "<|header_start|>user<|header_end|>\n\nAre you <b>there</b>?<|eot|><|header_start|>assistant<|header_end|>",
        "<|system|>\nBe brief.</s>\n<|user|>\nAre you <b>there</b>?</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.\n<|user|>\nAre you <b>there</b>?<|end|>\n<|assistant|>\n",
        "<|start|>system<|message|>You are a model.<|end|><|start|>developer<|message|>Be brief.<|end|>"
        "<|start|>user<|message|>Are you <b>there</b>?<|end|><|start|>assistant",
        "<|start|>user<|message|>Are you <b>there</b>?<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Are you <b>there</b>?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAre you <b>there</b>?\n\n### Response:",
        "### Human: Are you <b>there</b>? ### Assistant:",
        "### System:\nBe brief.\n\n### User:\nAre you <b>there</b>?\n\n### Assistant:\n",
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Are you <b>there</b>? ASSISTANT:",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nAre you <b>there</b>? [/INST]",
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Are you <b>there</b>?[/INST]",
        "<｜begin▁of▁sentence｜><｜User｜>Are you <b>there</b>?<｜Assistant｜>",
    ],
)
def test_markup_of_several_templates_is_stripped(marked: str) -> None:
    assert strip_markup(marked) == "Are you <b>there</b>?"


@pytest.mark.parametrize(
    ("marked", "asked"),
    [
        ("<|im_start|>model a car", "model a car"),
        ("<|im_start|>user\nmodel a car<|im_end|>", "model a car"),
        ("<|im_start|>system of equations: solve it", "system of equations: solve it"),
        ("<start_of_turn>user\nuser stories, please", "user stories, please"),
        ("<|user|>\nsystem</s>", "system"),
        ("What does ASSISTANT: mean in a prompt?", "What does ASSISTANT: mean in a prompt?"),
        ("Explain this.\n### System: Linux\n### Files:", "Explain this. ### System: Linux ### Files:"),
    ],
)
def test_words_of_an_instruction_are_kept(marked: str, asked: str) -> None:
    assert strip_markup(marked) == asked


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(3), "x.json: row 2: field 'preference' is 3, not"),
        (row(10**400), "row 2: field 'preference' is 1000"),
        (row("better"), "row 2: field 'preference' is 'better'"),
        (row(True), "row 2: field 'preference' is True"),
        (row(float("inf")), "row 2: field 'preference' is inf"),
        (row([1]), "row 2: field 'preference' is [1]"),
        (row(1, output_2=None), "row 2: field 'output_2' is not a str"),
        (row(1, generator_1=""), "row 2: field 'generator_1' is empty"),
        (row(1, generator_1="new"), "row 2: field 'generator': both outputs are by 'new'"),
        ({"instruction": "q"}, "row 2: has no outputs; a row of AlpacaEval needs those of two"),
        (row(1, generator_2=True), "row 2: field 'generator_2' is True; the name of a model must be"),
        (row(1, generator_1={"name": "x"}), "row 2: field 'generator_1' is {'name': 'x'}; the name of a model must be"),
        ("row", "row 2: not an object"),
    ],
)
def test_a_malformed_verdict_is_an_error(bad: Any, message: str, tmp_path: Path) -> None:
    code, output = evaluate("winrate", write(tmp_path / "x.json", [row(2), bad]))
    assert (code, message in output) == (2, True), output


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff", b"\x1f\x8b"])
def test_a_file_that_is_not_a_list_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    code, output = evaluate("winrate", tmp_path / "x.json")
    assert (code, "x.json" in output) == (2, True)


def poll(*ranks: dict[str, int], prompt: str = "Which?") -> dict[str, Any]:
    ballots = [{"voter": f"v{i}", "ranks": ranking} for i, ranking in enumerate(ranks)]
    return {"prompt": prompt, "responses": {"a": "One.", "b": "Two.", "c": "Three."}, "ballots": ballots}


def ballots(path: Path, *polls: dict[str, Any]) -> Path:
    return write(path, {"format": "assay-ballots", "prompts": list(polls)})


def key(path: Path, **models: str) -> Path:
    prompt = {"prompt": "Which?", "models": models or {"a": "abs", "b": "pref", "c": "sft"}}
    return write(path / "key.json", {"format": "assay-ballots-key", "prompts": [prompt]})


def test_votes_of_two_groups(tmp_path: Path) -> None:
    """One group has the example of [CRS] table 9, the other is of one mind."""
    split = poll({"a": 2, "b": 1, "c": 3}, {"a": 2, "b": 3, "c": 1}, {"a": 2, "b": 3, "c": 1})
    files = (ballots(tmp_path / "one.json", split), ballots(tmp_path / "two.json", poll({"a": 1, "b": 2, "c": 3})))
    found = records("vote", *files, "--keys", key(tmp_path))
    rules = list(dict.fromkeys((r["method"], r["ballot_ties"], r["majority_ties"]) for r in found))
    assert (len(rules), rules[0]) == (7, ("ranked pairs", "stored order", "by name"))
    first = found[: len(found) // 7]
    points = {(r["group"], r["model"]): r["points"] for r in first}
    assert points["one", "sft"] == points["two", "abs"] == 1
    assert points["one", "abs"] == pytest.approx(2 / 3)
    assert points[None, "abs"] == pytest.approx(5 / 6)
    (spread,) = [r["std"] for r in first if (r["group"], r["model"]) == (None, "abs")]
    assert spread == pytest.approx(1 / 6)  # of the population: the groups are all there are


def test_the_published_form(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.json", {"run": {"Which one. Or two?": {"0": "abs", "1": "pref"}}})
    cast = [{"response-1": 1, "response-2": 1, "user_id": "x"}, {"response-1": 2, "response-2": 1}]
    found = records("vote", write(tmp_path / "run.json", [cast]), "--keys", keys)
    assert [r["points"] for r in found if r["group"] is None][:2] == [1.0, 0.5]  # 1:1, and the tie to the first by name
    code, output = evaluate("vote", tmp_path / "run.json", tmp_path / "run.json", "--keys", keys)
    assert (code, "keys.json: the key has 1 groups of voters, but there are 2 files" in output) == (2, True)


def test_files_of_the_published_form_are_matched_with_groups_by_the_runs_number(tmp_path: Path) -> None:
    """Whatever the order of the arguments or of the key; without numbers by their places."""
    models = ({"0": "abs", "1": "pref"}, {"0": "pref", "1": "abs"})
    cast = [[{"response-1": 1, "response-2": 2, "user_id": "x"}]]

    def points(*names: str, groups: tuple[str, ...] = ("run_num0", "run_num1")) -> list[float]:
        by_group = {group: {"Which?": names} for group, names in zip(groups, models, strict=True)}
        keys = write(tmp_path / "keys.json", by_group)
        turned = [[{"response-1": 2, "response-2": 1, "user_id": "x"}]]
        files = [write(tmp_path / name, cast if name.endswith("1.json") else turned) for name in names]
        found = records("vote", *files, "--keys", keys)[:6]
        return [r["points"] for r in found if r["model"] == "abs"]

    assert points("run-1.json", "run-2.json") == points("run-2.json", "run-1.json") == [1, 1, 1]
    assert points("b1.json", "a2.json") == [1, 1, 1]
    assert points("a2.json", "b1.json") == [0.5, 0.5, 0.5]
    assert points("run-10.json", "run-1.json", groups=("first", "second")) == [1, 1, 1]
    assert points("run-2.json", "run-1.json", groups=("run_num1", "run_num0")) == [0.5, 0.5, 0.5]
    (tmp_path / "copy").mkdir()
    write(tmp_path / "copy" / "run-1.json", cast)
    files = (tmp_path / "run-1.json", tmp_path / "copy" / "run-1.json")
    code, output = evaluate("vote", *files, "--keys", tmp_path / "keys.json")
    assert (code, "two names end in the same run number" in output) == (2, True), output


@pytest.mark.parametrize(
    ("models", "ballot", "message"),
    [
        ({"²": "abs", "1": "pref"}, {}, "keys.json: run: prompt 1: field '²': the completions must be numbered from 0"),
        ({"1": "abs", "2": "pref"}, {}, "keys.json: run: prompt 1: field '2': the completions must be numbered from 0"),
        (
            {"0": "abs", "1": "pref"},
            {"response-3": 1},
            "run.json: prompt 1: ballot 1: field 'response-3' is not one of the completions",
        ),
        ({"0": "abs", "1": "pref"}, {"user_id": "x"}, "run.json: prompt 1: ballot 2: field 'user_id': 'x' has another"),
    ],
)
def test_a_malformed_file_of_the_published_form_is_an_error(
    models: dict[str, str], ballot: dict[str, Any], message: str, tmp_path: Path
) -> None:
    keys = write(tmp_path / "keys.json", {"run": {"Which?": models}})
    votes = write(tmp_path / "run.json", [[{"response-1": 1, "response-2": 2} | ballot] * 2])
    code, output = evaluate("vote", votes, "--keys", keys)
    assert (code, message in output) == (2, True), output


def test_prompts_without_ballots_are_counted_and_dropped(tmp_path: Path) -> None:
    ranks = {"a": 1, "b": 2, "c": 3}
    prompts = [{"prompt": prompt, "models": {"a": "x", "b": "y", "c": "z"}} for prompt in "PQ"]
    keys = write(tmp_path / "key.json", {"format": "assay-ballots-key", "prompts": prompts})
    votes = ballots(tmp_path / "x.json", poll(prompt="P"), poll(ranks, prompt="Q"))
    assert [r["points"] for r in records("vote", votes, "--keys", keys)[:6] if r["group"]] == pytest.approx(
        [1, 2 / 3, 1 / 3]
    )
    _, output = evaluate("vote", votes, "--keys", keys)
    assert "1 of 2 prompts have no ballots and are dropped: x: 'P'." in " ".join(output.split())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (poll({"a": 1, "b": 2}), "x.json: prompt 1: ballot 1: field 'c' has no rank; the completions are a, b, c"),
        (poll({"a": 0, "b": 2, "c": 3}), "ballot 1: field 'a' is 0, not a rank from 1 to 3"),
        (poll({"a": 1, "b": 2, "c": 3, "d": 3}), "x.json: prompt 1: ballot 1: field 'd' is not one of the completions"),
        (
            poll({"a": 1, "b": 2, "c": 3}) | {"ballots": [{"voter": "v", "ranks": {"a": 1, "b": 2, "c": 3}}] * 2},
            "x.json: prompt 1: ballot 2: field 'voter': 'v' has another ballot on this prompt",
        ),
        (poll(), "x.json: the file has no ballots"),
        (poll({"a": 1, "b": 2, "c": 3}) | {"prompt": ""}, "field 'prompt' is empty"),
        (poll({"a": 1, "b": 2, "c": 3}) | {"ballots": [3]}, "ballot 1: not an object"),
        (poll({"a": 1, "b": 2, "c": 3}, prompt="What?"), "x.json: field 'prompts' does not hold the prompts of"),
        (poll({"a": 1, "b": 2, "c": 3}) | {"responses": {"a": "One."}}, "field 'responses' does not have the names of"),
    ],
)
def test_a_malformed_poll_is_an_error(bad: dict[str, Any], message: str, tmp_path: Path) -> None:
    code, output = evaluate("vote", ballots(tmp_path / "x.json", bad), "--keys", key(tmp_path))
    assert (code, message in output) == (2, True), output


def test_a_malformed_key_is_an_error(tmp_path: Path) -> None:
    votes = ballots(tmp_path / "x.json", poll({"a": 1, "b": 2, "c": 3}))
    code, output = evaluate("vote", votes, "--keys", key(tmp_path, a="x", b="x", c="y"))
    assert (code, "must name two models or more, each once" in output) == (2, True), output


def test_ballots_are_matched_with_the_key_by_prompt(tmp_path: Path) -> None:
    """A file whose prompts somebody has sorted says the same."""
    first, second = (poll({"a": 1, "b": 2, "c": 3}, prompt=prompt) for prompt in ("P", "Q"))
    models = [{"a": "x", "b": "y", "c": "z"}, {"a": "z", "b": "y", "c": "x"}]
    prompts = [{"prompt": prompt, "models": names} for prompt, names in zip("PQ", models, strict=True)]
    keys = write(tmp_path / "key.json", {"format": "assay-ballots-key", "prompts": prompts})
    forth = records("vote", ballots(tmp_path / "x.json", first, second), "--keys", keys)
    back = records("vote", ballots(tmp_path / "x.json", second, first), "--keys", keys)
    assert forth == back
    assert [r["points"] for r in forth if r["group"] is None][:3] == pytest.approx([2 / 3] * 3)
    code, output = evaluate("vote", ballots(tmp_path / "x.json", first, first), "--keys", keys)
    assert (code, "each once" in output) == (2, True)


def test_a_group_of_voters_without_prompts_is_an_error(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.json", {"run": {}})
    code, output = evaluate("vote", write(tmp_path / "run.json", []), "--keys", keys)
    assert (code, "run.json: ballots on 0 prompts" in output) == (2, True)


def test_an_unpaired_surrogate_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"instruction": "\\ud83d", "generator": "a", "preference": 1}]')
    code, output = evaluate("winrate", tmp_path / "x.json")
    assert (code, "x.json: " in output, "surrogates" in output) == (2, True, True)


def test_people_rank_an_exported_task_without_seeing_names(tmp_path: Path) -> None:
    """Three models from two files of pairs; the ballots filled in come back as votes for the models."""
    asked = [row(2, i) for i in range(3)]
    other = [one | {"generator_2": "third", "output_2": "ccc"} for one in asked]
    files = (write(tmp_path / "x.json", asked), write(tmp_path / "y.json", other))
    code, output = evaluate("task", *files, "--out", tmp_path / "task.json", "--keys", tmp_path / "key.json")
    assert code == 0, output
    exported = json.loads((tmp_path / "task.json").read_text())
    assert not any(name in (tmp_path / "task.json").read_text() for name in ("base", "new", "third"))
    assert [len(prompt["responses"]) for prompt in exported["prompts"]] == [3, 3, 3]
    for prompt in exported["prompts"]:  # a voter who likes long ones
        longest = sorted(prompt["responses"], key=lambda name: -len(prompt["responses"][name]))
        prompt["ballots"] = [{"voter": "v", "ranks": {name: place for place, name in enumerate(longest, start=1)}}]
    found = records("vote", write(tmp_path / "task.json", exported), "--keys", tmp_path / "key.json")
    points = {r["model"]: r["points"] for r in found[:6] if r["group"] is None}
    assert points == pytest.approx({"third": 1, "new": 2 / 3, "base": 1 / 3})


def test_errors_by_bucket_of_ten_rows(tmp_path: Path) -> None:
    """By hand: low 0, .2, .4; mid .5, .5, .7, .89; high .9, 1, 1."""
    labels = [0.0, 0.2, 0.4, 0.5, 0.5, 0.7, 0.89, 0.9, 1.0, 1.0]
    predictions = [0.3, 0.2, 0.0, 0.5, 0.7, 0.6, 0.89, 0.4, 1.0, 0.8]
    rows = [{"label": label, "prediction": p} for label, p in zip(labels, predictions, strict=True)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    for path in (tmp_path / "x.jsonl", write(tmp_path / "x.json", rows)):
        found = {r["bucket"]: (r["n"], r["mse"], r["mae"]) for r in records("absolute", path)}
        assert found == {
            "low": (3, pytest.approx((0.09 + 0.16) / 3), pytest.approx(0.7 / 3)),
            "mid": (4, pytest.approx((0.04 + 0.01) / 4), pytest.approx(0.3 / 4)),
            "high": (3, pytest.approx((0.25 + 0.04) / 3), pytest.approx(0.7 / 3)),
            "all": (10, pytest.approx(0.059), pytest.approx(0.17)),
        }
    (tmp_path / "x.jsonl").write_text('{"label": 1.5, "prediction": 0}\n')
    assert "x.jsonl:1: field 'label' is 1.5" in evaluate("absolute", tmp_path / "x.jsonl")[1]


@pytest.mark.parametrize(
    ("given", "shown"), [("1e300", "1e+300"), ("-1e101", "-1e+101"), ("1e999", "inf"), ("NaN", "nan")]
)
def test_a_prediction_without_a_finite_square_is_an_error(tmp_path: Path, given: str, shown: str) -> None:
    rows = f'{{"label": 0.5, "prediction": 1e30}}\n{{"label": 0.5, "prediction": {given}}}\n'
    (tmp_path / "x.jsonl").write_text(rows)
    code, output = evaluate("absolute", tmp_path / "x.jsonl")
    assert (code, f"x.jsonl:2: field 'prediction' is {shown}, not a number from -1e+100 to 1e+100" in output) == (
        2,
        True,
    )
    (tmp_path / "x.jsonl").write_text(rows.splitlines()[0])
    code, output = evaluate("absolute", tmp_path / "x.jsonl", "--html", tmp_path / "x.html", "--json")
    assert (code, json.loads(output)[0]["mse"]) == (0, pytest.approx(1e60))


@pytest.mark.parametrize("command", ["winrate", "absolute"])
def test_empty_files_and_endless_nesting_are_errors(command: str, tmp_path: Path) -> None:
    for content in ("[]", "[" * 100_000):
        (tmp_path / "x.json").write_text(content)
        code, output = evaluate(command, tmp_path / "x.json")
        assert (code, "x.json" in output) == (2, True), output[:500]


def test_a_page_that_cannot_be_written_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    files = write(tmp_path / "x.json", [row(2)])
    code, output = evaluate("winrate", files, "--html", tmp_path / "absent" / "page.html")
    assert (code, "absent" in output) == (2, True)
    code, _ = evaluate("task", files, "--out", tmp_path / "task.json", "--keys", tmp_path / "absent" / "key.json")
    assert (code, (tmp_path / "task.json").exists()) == (2, False)
    code, _ = evaluate("task", files, "--out", tmp_path / "task.json", "--keys", tmp_path / "task.json")
    assert (code, (tmp_path / "task.json").exists()) == (2, False)


def test_names_of_models_are_not_parsed_as_formulas(tmp_path: Path) -> None:
    rows = [row(2, generator_2="$\\frac$"), row(1, 1, generator_2="a$x_1$b")]
    found = records("winrate", write(tmp_path / "x.json", rows), "--html", tmp_path / "page.html")
    assert {r["row"] for r in found} == {"base", "$\\frac$", "a$x_1$b"}


def test_two_groups_of_voters_have_two_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        ballots(tmp_path / folder / "x.json", poll({"a": 1, "b": 2, "c": 3}))
    code, output = evaluate("vote", tmp_path / "a" / "x.json", tmp_path / "b" / "x.json", "--keys", key(tmp_path))
    assert (code, "two files have the same name" in output) == (2, True)


def test_a_page_stands_by_itself_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [row(2, instruction="<script>"), row(1, generator_2="<b>new")])
    code, output = evaluate("winrate", path, "--html", tmp_path / "page.html")
    assert code == 0
    assert "Win rates" in output
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;new" in page
    assert "<b>new" not in page
    assert "<script" not in page
    assert page.count("<svg") == 1
    assert not re.search(r"(?:src|href)=\"(?!#)", page)  # nothing to load
    assert "assay" in page
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page
