"""`assay score` as a process against a service that is slow, silent, or stopped: it ends, and goes on."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.client.conftest import Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]

ASSAY = Path(sys.executable).with_name("assay")


@pytest.fixture
def slow(loopback: "Start", wire: "type[Wire]", reply: "type[Reply]") -> "Callable[[float], Loopback]":
    """A service that takes so many seconds for each item, one item after another, and answers `/info` at once."""

    def start(item_s: float) -> "Loopback":
        lock = threading.Lock()

        def script(asked: "ReceivedRequest", number: int) -> "Reply":
            if asked.path == "/v1/score":
                with lock:
                    time.sleep(item_s * len(asked.body["items"]))
            return reply(wire.honest(asked.path, asked.body))

        return loopback(script)

    return start


@pytest.fixture
def assay(tmp_path: Path) -> "Iterator[Callable[..., subprocess.Popen[str]]]":
    """Starts the command in `tmp_path`; whatever still runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start(*words: str, **options: Any) -> "subprocess.Popen[str]":
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, **options}
        # A background shell ignores SIGINT, and so would the command.
        interruptible = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        begun.append(subprocess.Popen([ASSAY, *words], preexec_fn=interruptible, **given))  # noqa: PLW1509
        return begun[-1]

    yield start
    for process in begun:
        with contextlib.suppress(OSError):
            process.kill()
        process.communicate()


def chunks(server: "Loopback") -> list[list[str]]:
    """The completions of each request to score."""
    return [[item["completion"] for item in one.body["items"]] for one in server.asked if one.path == "/v1/score"]


def numbered(path: Path, count: int, prompt: str = "p") -> None:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": str(n)}) + "\n" for n in range(count)))


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def has_rows(part: Path, count: int) -> bool:
    return part.exists() and len(part.read_text().splitlines()) >= count


def scores(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return [row["score"] for row in rows]


def test_a_slow_service_ends_in_its_own_time_and_no_work_is_done_twice(slow: Any, assay: Any, tmp_path: Path) -> None:
    """Each of 16 items takes 0.3 s of one worker: the last of the first wave waits 2.4 s, twice the limit."""
    server = slow(0.3)
    numbered(tmp_path / "in.jsonl", 16, prompt="long " * 1000)
    words = ["score", "in.jsonl", "-o", "out.jsonl", "--url", server.url, "--timeout", "1.2", "--concurrency", "8"]
    done = assay(*words)
    _, printed = done.communicate(timeout=60)
    assert (done.returncode, printed) == (0, "16 scored, 0 failed, fingerprint f1\n")
    assert scores(tmp_path / "out.jsonl") == [float(n) for n in range(16)]
    assert sorted(itertools.chain(*chunks(server)), key=int) == [str(n) for n in range(16)]
    assert [len(chunk) for chunk in chunks(server)[:8]] == [1] * 8


def test_requests_begin_small_and_grow_on_a_fast_service(slow: Any, assay: Any, tmp_path: Path) -> None:
    server = slow(0.0)
    numbered(tmp_path / "in.jsonl", 400, prompt="p" * 999)
    assert assay("score", "in.jsonl", "-o", "out", "--url", server.url, "--concurrency", "1").wait(60) == 0
    lengths = [len(chunk) for chunk in chunks(server)]
    assert lengths[0] <= 4  # 4,000 characters
    assert max(lengths) == 64
    assert scores(tmp_path / "out") == [float(n) for n in range(400)]


def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(slow: Any, assay: Any, tmp_path: Path) -> None:
    server = slow(0.08)
    numbered(tmp_path / "in.jsonl", 40, prompt="long " * 1000)
    words = ["score", "in.jsonl", "-o", "out.jsonl", "--url", server.url, "--concurrency", "2"]
    part = tmp_path / "out.jsonl.part"
    first = assay(*words)
    wait_for(partial(has_rows, part, 5))
    first.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, printed = first.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    done = scores(part)
    assert first.returncode == 130
    assert printed == (
        f"assay: interrupted; {len(done)} rows are in {part}; run the same command again to go on from there\n"
    )
    assert done == [float(n) for n in range(len(done))]
    assert not (tmp_path / "out.jsonl").exists()

    before = len(chunks(server))
    second = assay(*words)
    assert second.communicate(timeout=30)[1] == "40 scored, 0 failed, fingerprint f1\n"
    assert scores(tmp_path / "out.jsonl") == [float(n) for n in range(40)]
    # Two requests are sent at once, so either may be read first.
    assert min(int(number) for number in itertools.chain(*chunks(server)[before:])) == len(done)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_a_kill_does_no_harm_either(slow: Any, assay: Any, tmp_path: Path) -> None:
    server = slow(0.05)
    numbered(tmp_path / "in.jsonl", 30, prompt="long " * 1000)
    words = ["score", "in.jsonl", "-o", "out.jsonl", "--url", server.url, "--concurrency", "2"]
    for _ in range(2):
        going = assay(*words)
        part = tmp_path / "out.jsonl.part"
        wait_for(partial(has_rows, part, 4 + len(part.read_text().splitlines()) if part.exists() else 4))
        going.kill()
        going.wait()
    assert assay(*words).wait(30) == 0
    assert scores(tmp_path / "out.jsonl") == [float(n) for n in range(30)]


def test_ctrl_c_ends_at_once_while_stdin_is_silent(slow: Any, assay: Any) -> None:
    server = slow(0.0)
    going = assay("score", "-", "--url", server.url, stdin=subprocess.PIPE)
    wait_for(lambda: len(server.asked) > 0)
    time.sleep(0.3)
    going.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert going.wait(30) == 130
    assert time.monotonic() - begun < 5


def test_a_service_that_says_nothing_is_given_up_and_the_error_says_how_to_go_on(
    loopback: "Start", wire: "type[Wire]", reply: "type[Reply]", assay: Any, tmp_path: Path
) -> None:
    hung, awake = threading.Event(), threading.Event()

    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        if number > 12:
            hung.set()
        if hung.is_set():
            awake.wait(60)
        return reply(wire.honest(asked.path, asked.body))

    server = loopback(script)
    numbered(tmp_path / "in.jsonl", 40, prompt="long " * 1000)
    words = ["score", "in.jsonl", "-o", "out.jsonl", "--url", server.url, "--concurrency", "2", "--chunk-size", "1"]
    done = assay(*words, "--timeout", "1")
    _, printed = done.communicate(timeout=30)
    awake.set()
    part = tmp_path / "out.jsonl.part"
    kept = scores(part)
    assert done.returncode == 2
    assert printed == (
        f"assay: no sign of life from the service for 1 s; {len(kept)} rows are in {part}; "
        "run the same command again to go on from there\n"
    )
    assert 0 < len(kept) <= 12


def test_a_reader_that_leaves_ends_the_command_quietly(slow: Any, assay: Any, tmp_path: Path) -> None:
    """As `assay score … | head -1` does."""
    server = slow(0.0)
    numbered(tmp_path / "in.jsonl", 3000, prompt="p" * 50)
    going = assay("score", "in.jsonl", "--url", server.url)
    assert json.loads(going.stdout.readline())["score"] == 0.0
    going.stdout.close()
    assert (going.wait(30), going.stderr.read()) == (141, "")


def test_usual_options_and_completion_for_shells(assay: Any) -> None:
    version = assay("--version")
    assert version.communicate(timeout=60)[0].startswith("assay 0.")
    for words in (["-h"], ["score", "-h"], ["train", "reward", "-h"]):
        shown, printed = assay(*words).communicate(timeout=60)
        assert "Usage: assay" in shown
        assert printed == ""
    script = assay("--show-completion", "bash", env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert "_ASSAY_COMPLETE=complete_bash" in script.communicate(timeout=60)[0]
    typed = {"COMP_WORDS": "assay sc", "COMP_CWORD": "1", "_ASSAY_COMPLETE": "complete_bash"}
    found, _ = assay(env={**os.environ, **typed}).communicate(timeout=60)
    assert found.split() == ["score"]
