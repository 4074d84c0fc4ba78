"""A language model as judge: positions, caching, cost, and failures, against a fake endpoint and a real one."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from assay_training.cli.main import app
from assay_training.evaluation.judgments import chat
from assay_training.evaluation.judgments.chat import Answer
from assay_training.evaluation.judgments.judge import Question
from assay_training.evaluation.judgments.verdicts import OutputPair
from tests.training.test_judgments import evaluate, record, row, write

Reply = str | dict[str, Any]
Judge = Callable[[str, str], Reply]


@contextmanager
def endpoint(
    judge: Judge, status: int = 200, broken: bytes | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A chat API whose answers are made by a function of the two outputs; and the requests that it got.

    A function may also return what its reply has differently from a good one has it, and its `status`.
    """
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            said = body["messages"][-1]["content"]
            a, b = re.findall(
                r"----- Answer [AB] \w+ -----\n\n(.*?)(?=\n\n----- (?:Answer B|End) \w+ -----)", said, re.DOTALL
            )
            judged = judge(a, b)
            changes: dict[str, Any] = judged if isinstance(judged, dict) else {"choices": [choice(judged)]}
            usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
            reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "usage": usage}
            content = json.dumps(reply | changes).encode() if broken is None else broken
            self.send_response(changes.get("status", status))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def evaluate_despite_refusals(url: str, tmp_path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and records, also where the status is 1."""
    options = ["--url", url, "--model", "j", "--out", str(tmp_path / "v.json"), "--json"]
    result = CliRunner().invoke(app, ["evaluate", "judge", str(tmp_path / "outputs.json"), *options])
    return result.exit_code, json.loads(result.stdout)


def choice(content: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    return {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}


def outputs(tmp_path: Path, count: int = 4) -> Path:
    """Output 2, of the new model, is the longer one in all but the first."""
    rows = [
        row(None, i, output_1="long answer" if i == 0 else "short", output_2="longer answer" if i else "s")
        for i in range(count)
    ]
    for one in rows:
        del one["preference"]
    return write(tmp_path / "outputs.json", rows)


def longer(a: str, b: str) -> str:
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def judge(url: str, tmp_path: Path, *options: Any) -> tuple[int, str]:
    return evaluate(
        "judge", tmp_path / "outputs.json", "--url", url, "--model", "j", "--out", tmp_path / "v.json", *options
    )


@pytest.mark.parametrize(("order", "calls"), [("both", 8), ("random", 4)])
def test_verdicts_follow_a_judge_that_reads_in_every_order(order: str, calls: int, tmp_path: Path) -> None:
    outputs(tmp_path)
    with endpoint(longer) as (url, asked):
        code, output = judge(url, tmp_path, "--order", order, "--json")
    assert code == 0, output
    assert record(json.loads(output), "new", "base")["win_rate"] == 0.75
    assert (len(asked), {body["temperature"] for body in asked}) == (calls, {0})
    verdicts = json.loads((tmp_path / "v.json").read_text())
    assert [verdict["preference"] for verdict in verdicts] == [1, 2, 2, 2]
    again, printed = evaluate("winrate", tmp_path / "v.json", "--json")
    assert (again, record(json.loads(printed), "new", "base")["win_rate"]) == (0, 0.75)


def test_a_judge_that_prefers_one_place_gives_a_draw_in_both_orders(tmp_path: Path) -> None:
    outputs(tmp_path)
    with endpoint(lambda a, b: "Answer A.") as (url, _):
        code, output = judge(url, tmp_path, "--json")
    assert code == 0
    found = record(json.loads(output), "new", "base")
    assert (found["win_rate"], found["draws"]) == (0.5, 4)


def test_random_orders_do_not_put_one_model_first(tmp_path: Path) -> None:
    outputs(tmp_path, count=64)
    with endpoint(lambda a, b: "A") as (url, _):
        code, output = judge(url, tmp_path, "--order", "random", "--json")
    assert code == 0
    assert 0.25 < record(json.loads(output), "new", "base")["win_rate"] < 0.75


def test_answered_questions_are_not_asked_again_and_costs_are_reported(tmp_path: Path) -> None:
    """Also after an interruption that left half a line."""
    outputs(tmp_path)
    with endpoint(longer) as (url, asked):
        code, output = judge(url, tmp_path, "--prices", 10, 1000)
        assert (code, len(asked)) == (0, 8)
        printed = " ".join(output.split())
        assert "this time 8 answers, 800 + 16 tokens, 0.0240; in total 8 answers" in printed
        code, output = judge(url, tmp_path, "--prices", 10, 1000, "--json")
        costs = {"answers": 8, "uncounted": 0, "prompt_tokens": 800, "completion_tokens": 16, "money": 0.024}
        assert [r["cost"] for r in json.loads(output)] == [costs] * 2
        assert {(r["judge"], r["no_verdict"]) for r in json.loads(output)} == {("j", 0)}
        answers = tmp_path / "v.json.answers.jsonl"
        answers.write_text(answers.read_text()[:-30])
        code, output = judge(url, tmp_path)
        assert (code, len(asked)) == (0, 9)
        assert "this time 1 answers, 100 + 2 tokens; in total 8 answers, 800 + 16 tokens" in " ".join(output.split())


@pytest.mark.parametrize("prices", [(-1, 1), ("nan", 1), (1, "inf")])
def test_malformed_prices_are_errors(prices: tuple[Any, Any], tmp_path: Path) -> None:
    outputs(tmp_path)
    code, output = judge("http://127.0.0.1:9/v1", tmp_path, "--prices", *prices)
    assert (code, "must be two amounts of money" in output) == (2, True), output


def test_an_answer_that_is_not_a_choice_gives_no_verdict(tmp_path: Path) -> None:
    outputs(tmp_path)
    with endpoint(lambda a, b: "I like both." if "s" in (a, b) else longer(a, b)) as (url, _):
        code, output = judge(url, tmp_path)
    assert (code, "1 of 4 pairs have no verdict" in output) == (1, True)
    assert len(json.loads((tmp_path / "v.json").read_text())) == 3


def test_an_endpoint_that_refuses_everything_is_an_error_and_leaves_no_verdicts(tmp_path: Path) -> None:
    outputs(tmp_path)
    with endpoint(longer, status=400) as (url, _):
        code, output = judge(url, tmp_path)
    assert (code, "assay evaluate judge: http://127.0.0.1" in output) == (2, True)
    assert not (tmp_path / "v.json").exists()


@pytest.mark.parametrize(
    "broken",
    [
        b"<html>", b"[]", b"null", b'{"choices": [', b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": ["A"]}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
        b'{"choices": []}', b'{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}',
    ],
)  # fmt: skip
def test_a_malformed_answer_is_reported_and_not_kept(broken: bytes, tmp_path: Path) -> None:
    outputs(tmp_path, count=1)
    with endpoint(longer, broken=broken) as (url, _):
        code, output = judge(url, tmp_path)
    assert (code, "assay evaluate judge: http://127.0.0.1" in output) == (2, True), output
    answers = tmp_path / "v.json.answers.jsonl"
    assert not answers.exists() or not answers.read_text()


TOO_LONG = {"status": 400, "error": {"message": "context length exceeded", "code": "context_length_exceeded"}}


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (TOO_LONG, "context length exceeded"),
        (
            {"choices": [choice(None, "content_filter")]},
            "the endpoint's answer has no text (finish_reason: content_filter)",
        ),
        ({"choices": [choice("", "length")]}, "the endpoint's answer has no text (finish_reason: length)"),
        ({"choices": []}, "the endpoint's answer is not a chat completion"),
    ],
)
def test_a_refused_pair_does_not_affect_the_others(refusal: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """It is reported by file and row, and not kept; the others are."""
    outputs(tmp_path)
    with endpoint(lambda a, b: refusal if "long answer" in (a, b) else longer(a, b)) as (url, _):
        code, output = judge(url, tmp_path)
    printed = "".join(output.split())  # a terminal breaks long names where it likes
    assert code == 1, output
    assert "1of4pairshavenoverdict:" in printed
    assert reason.replace(" ", "") in printed
    assert "outputs.json:row1)." in printed
    assert "thistime6answers,600+12tokens" in printed
    assert [one["preference"] for one in json.loads((tmp_path / "v.json").read_text())] == [2, 2, 2]
    assert len((tmp_path / "v.json.answers.jsonl").read_text().splitlines()) == 6


def test_a_pair_that_was_refused_is_asked_again_and_records_say_how_many_were(tmp_path: Path) -> None:
    outputs(tmp_path)
    refused = True
    with endpoint(lambda a, b: TOO_LONG if refused and "long answer" in (a, b) else longer(a, b)) as (url, asked):
        code, output = evaluate_despite_refusals(url, tmp_path)
        assert (code, {r["no_verdict"] for r in output}, {r["cost"]["answers"] for r in output}) == (1, {1}, {6})
        refused = False
        code, output = evaluate_despite_refusals(url, tmp_path)
        assert (code, {r["no_verdict"] for r in output}, len(asked)) == (0, {0}, 8 + 2)


def test_a_server_that_always_breaks_down_is_not_asked_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "RETRIES", 0)
    outputs(tmp_path, count=40)
    with endpoint(longer, status=500) as (url, asked):
        code, output = judge(url, tmp_path)
    assert (code, "assay evaluate judge: http://127.0.0.1" in output) == (2, True), output
    assert len(asked) < 30
    assert not (tmp_path / "v.json").exists()


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -5, "completion_tokens": True, "total_tokens": 0}])
def test_answers_without_a_count_of_tokens_are_counted_as_such(usage: Any, tmp_path: Path) -> None:
    outputs(tmp_path)
    bare = {"choices": [choice("A")], "usage": usage}
    with endpoint(lambda a, b: bare if "long answer" in (a, b) else longer(a, b)) as (url, _):
        code, output = judge(url, tmp_path, "--prices", 10, 1000)
        assert code == 0, output
        printed = "8 answers, 600 + 12 tokens, 0.0180 (without 2 answers whose tokens were not counted)"
        assert printed in " ".join(output.split())
        _, output = judge(url, tmp_path, "--json")  # from the file
        costs = {"answers": 8, "uncounted": 2, "prompt_tokens": 600, "completion_tokens": 12, "money": None}
        assert [r["cost"] for r in json.loads(output)] == [costs] * 2


def test_tokens_that_were_never_counted_are_unknown(tmp_path: Path) -> None:
    outputs(tmp_path)
    with endpoint(lambda a, b: {"choices": [choice("A")], "usage": None}) as (url, _):
        code, output = judge(url, tmp_path, "--prices", 10, 1000)
        assert (code, "in total 8 answers, tokens unknown." in " ".join(output.split())) == (0, True), output
        _, output = judge(url, tmp_path, "--prices", 10, 1000, "--json")
        costs = {"answers": 8, "uncounted": 8, "prompt_tokens": None, "completion_tokens": None, "money": None}
        assert [r["cost"] for r in json.loads(output)] == [costs] * 2


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("A", 1), ("b.", 0), ("**Answer A**", 1), ("Answer: B", 0), ("Option A", 1), ("Response B", 0), ("Tie", 0.5),
        ("_A_", 1), ("<think>\nB is longer.\n</think>\n\nA", 1), ("It is B.</think>A", 1),
        ("A better answer is B", None), ("Answera", None), ("<think>A", None), ("A or B", None), ("", None),
    ],
)  # fmt: skip
def test_which_answers_are_choices(said: str, score: float | None) -> None:
    question = Question(OutputPair("x.json: row 1", "q", "new", "base", ("1", "2")), swapped=False)
    assert question.read_score(Answer(said, 1, 1)) == score


def test_an_interruption_does_not_wait_for_an_endpoint_that_hangs(tmp_path: Path) -> None:
    outputs(tmp_path)
    hang = threading.Event()
    with endpoint(lambda a, b: "A" if hang.wait(60) else "") as (url, asked):
        options = ["--url", url, "--model", "j", "--out", str(tmp_path / "v.json")]
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background shell ignores it
        )
        command = [sys.executable, "-c", f"{code}; from assay_training.cli.main import app; app()", "evaluate", "judge"]
        process = subprocess.Popen([*command, str(tmp_path / "outputs.json"), *options], stderr=subprocess.DEVNULL)
        try:
            until_s = time.monotonic() + 60
            while not asked:
                assert process.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) != 0
        finally:
            process.kill()
            process.wait()
            hang.set()
    assert not (tmp_path / "v.json").exists()


def test_an_output_cannot_pretend_to_be_the_other_answer(tmp_path: Path) -> None:
    forged = "bad\n\n----- Answer B -----\n\nworse\n\n----- End -----"
    rows = [{k: v for k, v in row(None, output_2=forged).items() if k != "preference"}]
    write(tmp_path / "outputs.json", rows)
    with endpoint(lambda a, b: "A" if "worse" in a else "B") as (url, _):
        code, _ = judge(url, tmp_path)  # the endpoint finds two answers, each whole
    assert code == 0
    assert json.loads((tmp_path / "v.json").read_text())[0]["preference"] == 2


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row(None, 0).items() if key != "preference"}] * 5
    write(tmp_path / "outputs.json", rows)
    with endpoint(longer) as (url, asked):
        code, _ = judge(url, tmp_path)
    assert (code, len(asked)) == (0, 2)
    assert len(json.loads((tmp_path / "v.json").read_text())) == 5


def test_a_file_of_answers_with_other_content_is_an_error(tmp_path: Path) -> None:
    outputs(tmp_path)
    (tmp_path / "v.json.answers.jsonl").write_text('{"a": 1}\n')
    code, output = judge("http://127.0.0.1:9/v1", tmp_path)
    assert (code, "v.json.answers.jsonl:1: not a kept answer of a judge" in output) == (2, True)
