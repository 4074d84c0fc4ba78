"""The command line against a loopback server: what it prints, writes and exits with."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from assay_client import _commands, _show, cli
from assay_client._rows import RankRow
from assay_client.provenance import Provenance
from assay_client.results import RankedCompletion, RankResult
from assay_client.types import SignalValue

if TYPE_CHECKING:
    from tests.client.conftest import Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]

RUN = CliRunner()


@pytest.fixture
def server(loopback: "Start", wire: "type[Wire]", reply: "type[Reply]") -> "Loopback":
    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        return reply(wire.honest(asked.path, asked.body))

    return loopback(script)


def scored(server: "Loopback") -> list[dict[str, Any]]:
    """What the server was asked to score."""
    return [asked.body for asked in server.asked if asked.path == "/v1/score"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "p", "completion": "1.5"}\n{"prompt": "p", "completion": "-2"}\n')
    return path


def test_score_writes_rows_to_stdout(server: "Loopback", file: Path) -> None:
    done = RUN.invoke(cli.app, ["score", str(file), "--url", server.url])
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == [1.5, -2.0]
    assert done.stderr == "2 scored, 0 failed, fingerprint f1\n"
    assert done.exit_code == 0


def test_score_reads_stdin(server: "Loopback", file: Path) -> None:
    done = RUN.invoke(cli.app, ["score", "-", "--url", server.url], input=file.read_text())
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [0, 1]


def test_failed_items_are_written_and_exit_with_1(server: "Loopback", file: Path, tmp_path: Path) -> None:
    file.write_text('{"prompt": "p", "completion": "1.5"}\n{"prompt": "p", "completion": "bad"}\n')
    out = tmp_path / "out.jsonl"
    done = RUN.invoke(cli.app, ["score", str(file), "-o", str(out), "--url", server.url])
    assert done.exit_code == 1
    assert done.stderr == "1 scored, 1 failed, fingerprint f1\nfirst: row 1: special_token: holds <s>\n"
    assert json.loads(out.read_text().splitlines()[1])["error"]["code"] == "special_token"


def test_flags_reach_the_wire(server: "Loopback", file: Path) -> None:
    flags = ["--weights", "preference=1, absolute=-0.5", "--truncation", "prompt_left"]
    assert RUN.invoke(cli.app, ["score", str(file), *flags, "--url", server.url]).exit_code == 0
    (asked,) = scored(server)
    assert asked["weights"] == {"preference": 1.0, "absolute": -0.5}
    assert asked["truncation"] == "prompt_left"
    assert "model" not in asked


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--weights", "preference"], "NAME=W"),
        (["--weights", "a=1,a=2"], "each name once"),
        (["--weights", "a=x"], "not a number"),
        (["--weights", "a=1", "--model", "crs"], "assay: `model` and `weights` exclude each other"),
        (["--truncation", "right"], "assay: `truncation` must be"),
        (["--url", "localhost"], "assay: the service's address must begin with"),
        (["-o", "/nowhere/out.jsonl"], "assay: [Errno 2]"),
        (["--timeout", "0"], "--timeout"),
        (["--chunk-size", "0"], "--chunk-size"),
        (["--concurrency", "0"], "--concurrency"),
    ],
)
def test_contradictory_options_exit_with_2(server: "Loopback", file: Path, flags: list[str], says: str) -> None:
    done = RUN.invoke(cli.app, ["score", str(file), "--url", server.url, *flags])
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert scored(server) == []


def test_a_refusal_is_one_line_and_exits_with_2(
    loopback: "Start", wire: "type[Wire]", reply: "type[Reply]", file: Path
) -> None:
    refusal = wire.refusal("model_not_found", retryable=False, param="model")
    server = loopback(lambda asked, number: reply(refusal, status=404))
    done = RUN.invoke(cli.app, ["score", str(file), "--model", "x", "--url", server.url])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"assay: 404 model_not_found at model: no. (request {server.asked[-1].request_id})\n"


def test_rank_prints_a_table_per_row(server: "Loopback", file: Path) -> None:
    rows = [
        {"prompt": "p", "completions": ["1.5", "3.25"], "id": "first"},
        {"prompt": "p", "completions": ["0.5", "bad"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = RUN.invoke(cli.app, ["rank", str(file), "--url", server.url])
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert "row 0: first" in lines
    assert lines.index("1 3.2500 1.7500 3.2500 3.25") < lines.index("2 1.5000 1.5000 1.5")
    assert "completion 1: special_token: holds <s>" in lines
    assert done.exit_code == 1


def test_rank_writes_rows_and_honors_top_n(server: "Loopback", file: Path) -> None:
    file.write_text('{"prompt": "p", "completions": ["1", "3", "2"]}\n')
    done = RUN.invoke(cli.app, ["rank", str(file), "-o", "-", "--top-n", "1", "--url", server.url])
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["index"] for one in row["results"]] == [1]
    assert done.exit_code == 0


def test_compare_prints_every_signal_and_blend(server: "Loopback") -> None:
    done = RUN.invoke(cli.app, ["compare", "--prompt", "p", "--a", "3", "--b", "1", "--url", server.url])
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert "preference +2.0000 0.750 3.0000 1.0000" in lines
    assert "absolute +2.0000 3.0000 1.0000" in lines
    assert "crs (blend) +0.5000" in lines


def test_comparisons_and_rankings_as_json(server: "Loopback", file: Path, tmp_path: Path) -> None:
    words = ["compare", "--prompt", "p", "--a", "3", "--b", "1", "--url", server.url]
    done = RUN.invoke(cli.app, [*words, "--json"])
    shown = json.loads(done.stdout)
    counts = {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "truncated_tokens": 0,
        "dropped_tokens": 0,
        "control_tokens_as_text": 0,
    }
    assert shown["signals"]["absolute"] == {
        "margin": 2.0,
        "a": {"logit": 3.0, "prob": 0.5, **counts},
        "b": {"logit": 1.0, "prob": 0.25, **counts},
    }
    assert shown["signals"]["preference"]["prob_a"] == 0.75
    assert (shown["blends"], shown["provenance"]["fingerprint"]) == ({"crs": {"margin": 0.5}}, "f1")
    out = tmp_path / "out.json"
    assert RUN.invoke(cli.app, [*words, "-o", str(out)]).stdout == ""
    assert json.loads(out.read_text()) == shown
    file.write_text('{"prompt": "p", "completions": ["1", "3"]}\n')
    ranked = RUN.invoke(cli.app, ["rank", str(file), "--json", "--url", server.url]).stdout
    assert [one["index"] for one in json.loads(ranked)["results"]] == [1, 0]


@pytest.mark.parametrize("words", [["compare", "--prompt", "p", "--a", "3", "--b", "1"], ["render", "FILE"]])
def test_a_model_is_asked_for_by_name(server: "Loopback", file: Path, words: list[str]) -> None:
    file.write_text('{"prompt": "p", "completion": "1.5"}\n')
    words = [str(file) if word == "FILE" else word for word in words]
    assert RUN.invoke(cli.app, [*words, "--url", server.url, "--model", "crs"]).exit_code == 0
    assert server.asked[-1].body["model"] == "crs"
    assert RUN.invoke(cli.app, [*words, "--url", server.url]).exit_code == 0
    assert "model" not in server.asked[-1].body


def test_json_goes_to_one_place(server: "Loopback") -> None:
    done = RUN.invoke(cli.app, ["compare", "--prompt", "p", "--a", "3", "--b", "1", "--json", "-o", "x"])
    assert done.exit_code == 2
    assert "--json writes to stdout" in " ".join(done.stderr.replace("│", " ").split())


def test_render_shows_what_is_read(server: "Loopback", file: Path) -> None:
    file.write_text('{"prompt": "p", "completion": "1.5", "id": "a"}\n{"prompt": "p", "completion": "bad"}\n')
    done = RUN.invoke(cli.app, ["render", str(file), "--url", server.url, "--truncation", "prompt_left"])
    assert done.stdout == (
        "row 0: a\n"
        "  preference: 4 tokens, 1 cut from the prompt; completion from token 2; "
        "score (last_token) from tokens 3 to 3\n"
        "    '<user>p</user>1.5'\n"
        "row 1\n"
        "  special_token: holds <s>\n"
    )
    assert done.stderr == "1 rendered, 1 failed\nfirst: row 1: special_token: holds <s>\n"
    assert done.exit_code == 1
    assert [asked.body["truncation"] for asked in server.asked if asked.path == "/v1/render"] == ["prompt_left"]
    shown = RUN.invoke(cli.app, ["render", str(file), "--url", server.url, "--json"]).stdout.splitlines()
    assert json.loads(shown[0])["signals"]["preference"]["ids"] == [5, 6, 7, 8]


def test_keys_that_are_not_part_of_an_item_are_copied_and_reported(server: "Loopback", file: Path) -> None:
    file.write_text('{"question": "p", "answer": "1.5", "finsh_reason": "length"}\n')
    flags = ["--prompt-field", "question", "--completion-field", "answer", "--url", server.url]
    done = RUN.invoke(cli.app, ["score", str(file), *flags])
    assert json.loads(done.stdout)["extra"] == {"finsh_reason": "length"}
    assert "not part of an item, copied to `extra`: finsh_reason" in done.stderr


def test_the_url_comes_from_the_environment_unless_it_is_given(
    server: "Loopback", file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_URL", server.url)
    assert RUN.invoke(cli.app, ["score", str(file)]).exit_code == 0
    assert RUN.invoke(cli.app, ["score", str(file), "--url", "http://127.0.0.1:9"]).exit_code == 2


@pytest.mark.parametrize(
    "words", [["score"], ["rank"], ["render"], ["compare", "--prompt", "p", "--a", "x", "--b", "y"]]
)
def test_where_nobody_listens_a_command_says_so_at_once(file: Path, words: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    begun = time.monotonic()
    done = RUN.invoke(cli.app, [*words, *([str(file)] if len(words) == 1 else []), "--url", url])
    assert time.monotonic() - begun < 4
    assert done.exit_code == 2
    assert done.stderr == (
        f"assay: no service at {url} (start one with `assay serve`, or give --url or ASSAY_URL): "
        "[Errno 111] Connection refused\n"
    )


@pytest.mark.parametrize(("columns", "longest"), [(None, 400), (30, 73), (120, 120)])
def test_numbers_are_never_broken(monkeypatch: pytest.MonkeyPatch, columns: int | None, longest: int) -> None:
    """In a pipe a table is as wide as it needs; on a terminal at least as wide as its numbers."""
    import pty  # noqa: PLC0415

    value = SignalValue(-1.25, None, 1, 1, 0, 0, 0)
    names = [f"signal_{n}" for n in range(6)] if columns != 30 else ["one", "two"]
    ranked = RankedCompletion(0, None, -1234.5678, dict.fromkeys(names, value), None)
    result = RankResult((ranked,), (), "crs", Provenance(None, {}, "f"))
    row = RankRow("p", ("some words " * 20,), None, {})
    reader, writer = pty.openpty() if columns else os.pipe()
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        _show.show_rank(0, row, result)
        stream.flush()
        text = re.sub(r"\x1b\[[0-9;]*m", "", os.read(reader, 100_000).decode())
    assert text.count("-1234.5678") == 1
    assert text.count("-1.2500") == len(names)
    assert all(name in text for name in names)
    assert max(len(line) for line in text.splitlines()) <= longest


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\n b\tc", "a b c"), ("\x1b[31mred\x07", "[31mred"), ("x" * 61, "x" * 59 + "…"), ("x" * 60, "x" * 60)],
)
def test_a_completion_is_shown_on_one_line_without_control_characters(text: str, shown: str) -> None:
    assert _show.shorten(text) == shown


# --- Commands of other parts

PART = """
import typer
app = typer.Typer()
@app.command()
def brew(cups: int = 1) -> None:
    import {library}
    typer.echo(f"{{cups}} cups")
"""


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Runs `main` with one extra, "coffee", whose module is the text; gives exit code, stdout and stderr."""

    def run(text: str, *words: str) -> tuple[object, str, str]:
        (tmp_path / "coffee_part.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "coffee_part", raising=False)
        entry = EntryPoint("coffee", "coffee_part:app", _commands.GROUP)
        monkeypatch.setattr(cli, "entry_points", lambda group: [entry])
        monkeypatch.setattr(sys, "argv", ["assay", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


HINT = (
    "this command needs no_such_library: pip install '.[coffee]' in a checkout, or pip install "
    "'assay-rewards[coffee] @ git+URL' with the URL of the repository (it is not on PyPI)\n"
)


def test_commands_of_an_extra_stand_beside_the_own(run_main: Callable[..., tuple[object, str, str]]) -> None:
    part = PART.format(library="json")
    assert run_main(part, "brew", "--cups", "2") == (0, "2 cups\n", "")
    code, out, _ = run_main(part, "--help")
    assert code == 0
    assert "brew" in out
    assert "score" in out


def test_a_library_missing_when_a_command_runs_names_the_extra(
    run_main: Callable[..., tuple[object, str, str]],
) -> None:
    assert run_main(PART.format(library="no_such_library"), "brew") == (2, "", f"assay: {HINT}")


def test_a_library_missing_at_the_top_names_the_extra_and_spares_the_others(
    run_main: Callable[..., tuple[object, str, str]],
) -> None:
    broken = "import no_such_library\n" + PART.format(library="json")
    assert run_main(broken, "brew") == (2, "", f"assay: brew: {HINT}")
    code, out, _ = run_main(broken, "score", "--help")
    assert (code, "FILE" in out) == (0, True)


def test_a_missing_module_of_our_own_is_not_blamed_on_an_extra(
    run_main: Callable[..., tuple[object, str, str]],
) -> None:
    with pytest.raises(ModuleNotFoundError, match="assay_gone"):
        run_main(PART.format(library="assay_gone"), "brew")
    code, _, err = run_main("import assay_gone", "brew")
    assert (code, "pip install" in err) == (2, False)


def test_the_own_commands_are_not_changed_by_merging() -> None:
    before = len(cli.app.registered_commands)
    whole = _commands.Commands.of(cli.app, [])
    assert len(cli.app.registered_commands) == before
    assert set(typer.main.get_group(whole.app).commands) == {"score", "rank", "compare", "render", "diff"}


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    code = "import sys, assay_client.cli; print(sorted({'httpx', 'rich.progress'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
