"""Subjects of commits: the hook and the check of a pushed range."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests import commits

TYPES = ["feat", "fix", "docs"]


@pytest.mark.parametrize(
    "subject",
    ["fix(api): a repeated key is refused", "feat(client,service)!: x2", "docs(a): " + "x" * 63, "Merge branch 'a'"],
)
def test_subjects_of_the_prescribed_form_pass(subject: str) -> None:
    assert commits.find_fault(subject, TYPES) is None


@pytest.mark.parametrize(
    ("subject", "fault"),
    [
        ("docs(a): " + "x" * 64, "has 73 characters"),
        ("chore(api): x2", "where type is one of feat, fix, docs"),
        ("fix: no scope", "is not `type"),
        ("fix(api) no colon", "is not `type"),
        ("fix(api): ends with a stop.", "is not `type"),
        ("fix(api): ", "is not `type"),
        ("", "is not `type"),
    ],
)
def test_other_subjects_are_faults(subject: str, fault: str) -> None:
    assert fault in (commits.find_fault(subject, TYPES) or "")


def test_types_are_those_of_the_page() -> None:
    assert commits.read_types() == ["feat", "fix", "docs", "refactor", "perf", "test", "build", "ci"]


def test_a_message_is_checked_by_its_first_line_that_is_not_a_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = tmp_path / "COMMIT_EDITMSG"
    message.write_text("# a comment\n\nfix(api): a repeated key is refused\n\nThis body may be longer.\n")
    assert commits.main(str(message)) == 0
    message.write_text("Fixed it\n")
    assert commits.main(str(message)) == 1
    assert capsys.readouterr().err.startswith("'Fixed it' is not `type(scope): ")


def test_a_range_is_checked_without_what_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    for subject in ("before", "fix(api): x2", "after"):
        subprocess.run(["git", *who, "commit", "--quiet", "--allow-empty", "--message", subject], check=True)
    assert commits.main("HEAD~2..HEAD~1") == 0
    assert commits.main("HEAD~2..HEAD") == 1
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["'after'"]


def test_both_places_call_the_check() -> None:
    hooks = yaml.safe_load((commits.ROOT / ".pre-commit-config.yaml").read_text())
    assert "commit-msg" in hooks["default_install_hook_types"]
    (hook,) = (hook for repo in hooks["repos"] for hook in repo["hooks"] if hook.get("stages") == ["commit-msg"])
    assert hook["entry"].endswith("-m tests.commits")
    jobs = yaml.safe_load((commits.ROOT / ".github/workflows/check.yml").read_text())["jobs"]
    assert any("-m tests.commits" in step.get("run", "") for step in jobs["commits"]["steps"])
