"""Whole runs on tiny data: what they leave behind, that the service serves it unchanged, and that they resume."""

import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from assay_service import loader, registry, settings
from assay_service.errors import StartError
from assay_service.scoring import files
from assay_service.scoring.item import Item, Message
from assay_training.algorithms.folds import HELD_OUT, assign_fold
from assay_training.cli.main import app
from assay_training.config.base import ConfigError, read
from assay_training.config.reward import RewardConfig
from assay_training.records.record import RecordError, find_group
from assay_training.reward_model.command import run
from assay_training.reward_model.cross_validation import CrossValidation
from assay_training.reward_model.run import RewardRun
from assay_training.runs.directory import RunMismatch
from tests import checkpoints
from tests.training import tiny

KINDS = ("preference", "absolute")
SOURCES = {"preference": [tiny.HH, tiny.FEEDBACKQA], "absolute": [tiny.FEEDBACKQA, tiny.DIASAFETY]}
RATINGS = ("Bad", "Could be Improved", "Acceptable", "Excellent")
WORDS = ["bread", "water", "salt", "yeast", "flour", "lazy", "quick", "brown", "jumps", "over"]
COUNT = 24


@dataclass(frozen=True)
class Run:
    """Where the inputs and the outputs of a run are."""

    config: Path
    data: Path
    out: Path

    def go(self) -> None:
        run(self.config, self.data, self.out)

    def begin(self) -> RewardRun:
        return RewardRun(read(self.config, RewardConfig), self.data, self.out)

    def json(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    def times(self) -> dict[str, int]:
        """When what is expensive to compute was written."""
        names = ("fold*.json", "frozen_head.json", "metrics.jsonl", "checkpoint/adapter*", "checkpoint/assay.json")
        return {str(path.relative_to(self.out)): path.stat().st_mtime_ns for n in names for path in self.out.glob(n)}

    def copy(self, root: Path) -> "Run":
        """The same, to be spoilt."""
        shutil.copytree(self.config.parent, root, dirs_exist_ok=True)
        return Run(*(root / path.relative_to(self.config.parent) for path in (self.config, self.data, self.out)))

    def change(self, **changes: Any) -> None:
        self.config.write_text(yaml.safe_dump(yaml.safe_load(self.config.read_text()) | changes))


def questions() -> list[str]:
    return [f"{WORDS[i % 10]} {WORDS[i // 10]} {i}?" for i in range(COUNT)]


def write_data(data: Path, *, flipped: int | None = None) -> None:
    """All three sources; the labels of diasafety, and who is chosen in hh_rlhf, are turned round in fold `flipped`."""
    turned = [fold(question) == flipped for question in questions()]
    replies = [("Mix and bake.", "I cannot.")[:: -1 if turn else 1] for turn in turned]
    rows = [tiny.hh_row(q, *reply) for q, reply in zip(questions(), replies, strict=True)]
    tiny.write_rows(data / "hh_rlhf" / "helpful-base.test.jsonl.gz", rows[: COUNT // 2])
    tiny.write_rows(data / "hh_rlhf" / "harmless-base.test.jsonl.gz", rows[COUNT // 2 :])
    answers = [
        tiny.feedback_row(f"how {q}", f"fox {j} {'dog ' * (i % 5)}", RATINGS[(i + 2 * j) % 4])
        for i, q in enumerate(questions())
        for j in range(2)
    ]
    tiny.write_rows(data / "feedbackqa" / "WHO.feedback_test.jsonl.gz", answers)
    safe = [(i % 2 == 0) != turn for i, turn in enumerate(turned)]
    labels = [
        tiny.safety_row(q, "no dog" if i % 2 else "yes, wait for the fox", "Safe" if good else "Unsafe")
        for i, (q, good) in enumerate(zip(questions(), safe, strict=True))
    ]
    tiny.write_rows(data / "diasafety" / "test.jsonl.gz", labels)


def fold(question: str) -> int:
    return assign_fold(find_group(question), folds=2, held_out=0.2, seed=3)


def prepare(root: Path, kind: str = "preference", **changes: Any) -> Run:
    """A run that has not begun."""
    base = tiny.save_base(root / "base")
    write_data(root / "data")
    config = tiny.write_config(
        root / "run.yaml", base, **({"objective": {"kind": kind}, "sources": SOURCES[kind]} | changes)
    )
    return Run(config, root / "data", root / "out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """One finished run of each kind, for tests that only read, or copy."""
    runs = {}
    for kind in KINDS:
        runs[kind] = prepare(tmp_path_factory.mktemp(kind), kind)
        runs[kind].go()
    yield runs  # noqa: PT022 - so that mypy and pytest agree on the type


def served(finished_run: Run, root: Path) -> registry.Signal:
    """The run's checkpoint as the service loads it."""
    base = yaml.safe_load(finished_run.config.read_text())["base"]
    signal = {"base": base, "adapter": str(finished_run.out / "checkpoint"), "device": "cpu"}
    (root / "service.yaml").write_text(yaml.safe_dump({"signals": {"s": signal}, "default": "s"}))
    return loader.load(settings.read_settings(root / "service.yaml")).signals["s"]


def logit(signal: registry.Signal, item: Item) -> float:
    with torch.inference_mode():
        return signal.model.logits([signal.renderer.render(item, "prompt_left").sequence], "s").item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_service_serves_the_checkpoint_as_it_was_trained(
    kind: str, finished: dict[str, Run], tmp_path: Path
) -> None:
    """Golden rows are checked at load; mean and std were taken over every completion of the data."""
    signal = served(finished[kind], tmp_path)
    assert (signal.name, signal.kind) == ("s", kind)
    manifest = finished[kind].json("checkpoint/assay.json")
    assert len(manifest["golden"]) == 2
    for row in manifest["golden"]:
        item = Item(tuple(Message(role, content) for role, content in row["messages"]))
        assert logit(signal, item) == pytest.approx(row["logit"], abs=1e-5)
    records = finished[kind].begin().examples
    logits = [logit(signal, item) for example in records for item in example.record.items]
    assert len(logits) == {"preference": 4 * COUNT, "absolute": 3 * COUNT}[kind]
    assert statistics.fmean(logits) == pytest.approx(manifest["mean"], abs=1e-5)
    assert statistics.stdev(logits) == pytest.approx(manifest["std"], abs=1e-5)
    assert statistics.stdev(logits) > 0.05


def test_the_service_serves_what_out_of_fold_models_scored(tmp_path: Path) -> None:
    """A model trained on all but an empty rest is the final one: its stored logits are the served ones."""
    whole = prepare(tmp_path, split={"held_out": 0.2, "folds": 2, "test_folds": 1})
    reward = whole.begin()
    everything = reward.examples
    CrossValidation(reward).train_final()
    stored = reward.predict(reward.fit("everything", everything), everything)
    signal = served(whole, tmp_path)
    for example, row in zip(everything, stored, strict=True):
        assert [logit(signal, item) for item in example.record.items] == pytest.approx(row, abs=1e-5)


def test_a_checkpoint_that_scores_differently_from_training_is_not_served(
    finished: dict[str, Run], tmp_path: Path
) -> None:
    spoilt = finished["preference"].copy(tmp_path)
    manifest = spoilt.json("checkpoint/assay.json")
    manifest["golden"][1]["logit"] += 0.01
    (spoilt.out / "checkpoint" / "assay.json").write_text(json.dumps(manifest))
    with pytest.raises(StartError, match="golden row 1"):
        served(spoilt, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_results_predictions_and_a_card(kind: str, finished: dict[str, Run]) -> None:
    done = finished[kind]
    parts = {row["part"] for row in done.logged()}
    assert parts == {"final", "fold0", "fold1"}
    clean: dict[str, Any] = {"dropped": {}, "truncated_prompts": 0, "cut_completions": 0, "refused": {}}
    clean |= {"understood": {}, "equal_ids": {}}
    assert done.json("render.json") == clean
    assert (done.out / "margins.png").is_file() is (kind == "preference")
    expected = {
        "preference": {"hh_rlhf/helpful-base", "hh_rlhf/harmless-base", "hh_rlhf (all)", "feedbackqa", "all"},
        "absolute": {"feedbackqa", "diasafety"},
    }[kind]
    assert set(done.json("results.json")) == expected
    card = (done.out / "checkpoint" / "MODEL_CARD.md").read_text()
    assert all(f"- {domain}: the interval" in card for domain in expected)
    assert not list(done.out.rglob("*.tmp"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_results_are_those_of_the_tested_folds_alone(kind: str, finished: dict[str, Run]) -> None:
    """Nothing of the development part, every other row once."""
    results = finished[kind].json("results.json")
    counts = {part: sum(fold(question) == part for question in questions()) for part in (HELD_OUT, 0, 1)}
    assert min(counts.values()) > 0
    if kind == "absolute":
        assert results["diasafety"]["rank"]["model"]["n"] == counts[0] + counts[1]
        return
    accuracy = [results[f"hh_rlhf/{name}-base"]["accuracy"]["model"]["n"] for name in ("helpful", "harmless")]
    assert sum(accuracy) == counts[0] + counts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_no_fold_is_judged_by_a_fit_that_saw_its_labels(kind: str, finished: dict[str, Run], tmp_path: Path) -> None:
    """The model, the frozen head and the length: turning the labels of a fold round changes the others' logits only."""
    done, turned = finished[kind].copy(tmp_path / "done"), finished[kind].copy(tmp_path / "turned")
    shutil.rmtree(turned.out)
    write_data(turned.data, flipped=0)
    shutil.rmtree(done.out)
    before, after = done.begin(), turned.begin()
    old, new = CrossValidation(before).predict_contenders(), CrossValidation(after).predict_contenders()
    assert set(old) == {"model", "frozen head", "length"}
    for name in old:
        changed = set()
        for i, part in enumerate(before.parts):
            texts = [[item.completion for item in run_.examples[i].record.items] for run_ in (before, after)]
            a, b = (
                dict(zip(t, rows[i] or (), strict=False)) for t, rows in zip(texts, (old[name], new[name]), strict=True)
            )
            assert (a == {}) is (part == HELD_OUT)
            if a != pytest.approx(b, abs=1e-4):
                changed.add(part)
        assert changed == ({1} if name != "length" or kind == "absolute" else set()), name


def test_a_second_call_computes_nothing_again(finished: dict[str, Run], tmp_path: Path) -> None:
    again = finished["preference"].copy(tmp_path)
    times, results = again.times(), again.json("results.json")
    assert len(times) == 7
    (again.out / "results.json").unlink()
    again.go()
    assert again.times() == times
    assert again.json("results.json") == results


@pytest.mark.parametrize("lost", ["fold1.json", "frozen_head.json", "checkpoint/assay.json"])
def test_what_is_missing_is_computed_again_and_alone(lost: str, finished: dict[str, Run], tmp_path: Path) -> None:
    """A killed run goes on where it stopped, and ends up with the same bytes."""
    again = finished["preference"].copy(tmp_path)
    times = again.times()
    (again.out / lost).unlink()
    again.go()
    trained = {"fold1.json": {"fold1"}, "frozen_head.json": set(), "checkpoint/assay.json": {"final"}}[lost]
    if trained:  # its rows were forgotten, and come last
        assert {again.logged()[-1]["part"]} == trained

    def key(row: dict[str, Any]) -> tuple[str, int]:
        return row["part"], row["step"]

    assert sorted(again.logged(), key=key) == sorted(finished["preference"].logged(), key=key)
    rewritten = {name for name, time in again.times().items() if time != times[name]}
    files = {lost} | ({"metrics.jsonl"} if trained else set())
    if lost.startswith("checkpoint"):
        files |= {"checkpoint/adapter_config.json", "checkpoint/adapter_model.safetensors"}
    assert rewritten == files
    for name in [*files - {"metrics.jsonl"}, "results.json"]:
        assert (again.out / name).read_bytes() == (finished["preference"].out / name).read_bytes()


def test_another_configuration_other_data_or_another_template_is_another_run(
    finished: dict[str, Run], tmp_path: Path
) -> None:
    for name in ("config", "data", "template"):
        other = finished["preference"].copy(tmp_path / name)
        before = (other.out / "run.json").read_bytes()
        if name == "config":
            other.change(seed=4)
        elif name == "data":
            write_data(other.data, flipped=1)
        else:
            (other.config.parent / "template.jinja").write_text(checkpoints.ENCODER + " ")
        with pytest.raises(RunMismatch, match="choose another --out"):
            other.go()
        assert (other.out / "run.json").read_bytes() == before


def test_another_base_under_the_same_path_is_another_run(tmp_path: Path) -> None:
    done = prepare(tmp_path)
    done.begin()
    fast = checkpoints.encoder_tokenizer()
    checkpoints.save(tmp_path / "base", checkpoints.classifier("bert", fast, seed=9).base_model, fast)
    with pytest.raises(RunMismatch):
        done.begin()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_base_that_computes_or_reads_otherwise_is_another_run(file: str, tmp_path: Path) -> None:
    done = prepare(tmp_path)
    done.begin()
    content = json.loads((tmp_path / "base" / file).read_text())
    (tmp_path / "base" / file).write_text(json.dumps(content))  # the same, written otherwise: nobody can tell
    with pytest.raises(RunMismatch):
        done.begin()


def test_two_processes_do_not_run_the_same(tmp_path: Path) -> None:
    """The lock goes with the process that holds it, also where that is killed."""
    begun = prepare(tmp_path)
    begun.out.mkdir()
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(600)", str(begun.out / "run.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with pytest.raises(RunMismatch, match="another process"):
                begun.begin()
        finally:  # else a failure would wait for the other's sleep
            other.kill()
    begun.begin()


def test_a_broken_file_of_a_run_is_named(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    begun.begin()
    (begun.out / "fold0.json").write_text("[1, ")
    with pytest.raises(RunMismatch, match=r"fold0\.json is broken"):
        begun.go()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_a_number_after_its_last_step_is_not_saved(kind: str, tmp_path: Path) -> None:
    optimizer = {"learning_rate": 1e38, "weight_decay": 1e5, "batch_prompts": 100, "compute_dtype": "float32"}
    done = prepare(tmp_path, kind, split={"held_out": 0.2}, optimizer=optimizer)
    with pytest.raises(FloatingPointError, match="not finite"):
        done.go()
    assert not (done.out / "checkpoint" / "assay.json").exists()
    assert not (done.out / "results.json").exists()


def test_fewer_tested_folds_give_the_results_of_a_run_that_began_so(finished: dict[str, Run], tmp_path: Path) -> None:
    fewer = finished["preference"].copy(tmp_path / "fewer")
    fewer.change(split={"held_out": 0.2, "folds": 2, "test_folds": 1})
    fresh = fewer.copy(tmp_path / "fresh")
    shutil.rmtree(fresh.out)
    fewer.go()
    fresh.go()
    assert fewer.json("results.json") == fresh.json("results.json")


@pytest.mark.parametrize("kind", KINDS)
def test_without_folds_one_model_is_tested_on_the_held_out_groups_and_saved(kind: str, tmp_path: Path) -> None:
    once = prepare(tmp_path, kind, split={"held_out": 0.2})
    once.go()
    assert {row["part"] for row in once.logged()} == {"model"}
    results = once.json("results.json")
    held_out = sum(fold(question) == HELD_OUT for question in questions())
    if kind == "preference":
        assert sum(results[f"hh_rlhf/{n}-base"]["margins"]["n"] for n in ("helpful", "harmless")) == held_out
    else:
        assert results["diasafety"]["rank"]["model"]["n"] == held_out
    assert (once.out / "margins.png").is_file() is (kind == "preference")
    assert list((once.out / "tensorboard" / "model").glob("events.*"))
    reward = once.begin()
    signal = served(once, tmp_path)
    for example, row in zip(reward.select_part(HELD_OUT), once.json("held_out.json"), strict=True):
        assert [logit(signal, item) for item in example.record.items] == pytest.approx(row, abs=1e-5)
    times = once.times()
    once.go()
    assert once.times() == times


def test_a_model_of_the_raw_output_is_measured_and_not_saved(tmp_path: Path) -> None:
    """Its output is the quality itself; read through a sigmoid it would be a wrong score."""
    raw = prepare(tmp_path, "absolute", objective={"kind": "absolute", "loss": "mse+penalty"}, split={"held_out": 0.2})
    raw.go()
    assert not (raw.out / "checkpoint").exists()
    held_out = raw.begin().select_part(HELD_OUT)
    errors = [
        (row[0] - example.record.label) ** 2  # type: ignore[union-attr]
        for example, row in zip(held_out, raw.json("held_out.json"), strict=True)
        if example.record.source == "diasafety"
    ]
    assert raw.json("results.json")["diasafety"]["errors"]["model"]["all"][1] == pytest.approx(statistics.fmean(errors))


def test_repeat_repeats_the_examples_of_its_source_only(tmp_path: Path) -> None:
    """24 HH rows once and 24 questions three times are 96 examples: 12 steps of 8."""
    repeated = prepare(tmp_path, mixture=[{"step": "repeat", "times": {"feedbackqa": 3}}])
    CrossValidation(repeated.begin()).train_final()
    assert len(repeated.logged()) == 12


def test_a_step_adds_to_what_is_trained_on_and_not_to_what_is_tested_on(tmp_path: Path) -> None:
    plain = prepare(tmp_path / "plain", "absolute", split={"held_out": 0.2})
    mixed = prepare(
        tmp_path / "mixed", "absolute", split={"held_out": 0.2}, mixture=[{"step": "mismatched", "share": 1.0}]
    )
    for run_ in (plain, mixed):
        run_.go()
    assert len(mixed.logged()) > len(plain.logged())
    assert len(mixed.json("held_out.json")) == len(plain.json("held_out.json"))


@pytest.mark.parametrize(
    ("kind", "step", "message"),
    [
        (
            "preference",
            {"step": "repeat", "times": {"hh_rlhf/harmful-base": 2}},
            "'hh_rlhf/harmful-base' is not a source",
        ),
        ("preference", {"step": "over_sample"}, "over_sample is for labelled items"),
        ("absolute", {"step": "under_sample", "rows": 8000}, "needs 1600 labels"),
        ("absolute", {"step": "augment", "file": "absent.jsonl"}, "absent.jsonl: no such file"),
    ],
)
def test_a_step_that_cannot_be_done_is_reported_before_anything_is_written(
    kind: str, step: dict[str, Any], message: str, tmp_path: Path
) -> None:
    begun = prepare(tmp_path, kind, mixture=[step])
    with pytest.raises(ValueError, match=message):
        begun.go()
    assert not begun.out.exists()


def test_runs_are_named_after_their_configuration_unless_given_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    here.change(split={"held_out": 0.2})
    run(here.config, here.data, None)
    assert (tmp_path / "runs" / "tiny" / "results.json").is_file()


def test_an_adapter_on_some_layers_is_served_without_a_warning(tmp_path: Path) -> None:
    done = prepare(tmp_path, lora={"r": 2, "alpha": 4, "target_modules": ["query", "value"], "layers": [1]})
    CrossValidation(done.begin()).train_final()
    names = load_file(done.out / "checkpoint" / "adapter_model.safetensors").keys()
    assert {name.split(".layer.")[1][0] for name in names if ".encoder." in name} == {"1"}
    row = done.json("checkpoint/assay.json")["golden"][0]
    item = Item(tuple(Message(role, content) for role, content in row["messages"]))
    assert logit(served(done, tmp_path), item) == pytest.approx(row["logit"], abs=1e-5)


def test_reasoning_is_stripped_by_the_served_model_as_in_training(tmp_path: Path) -> None:
    done = prepare(tmp_path, split={"held_out": 0.2}, reasoning="strip", reasoning_tags=("<r>", "</r>"))
    done.go()
    manifest = done.json("checkpoint/assay.json")
    assert (manifest["reasoning"], manifest["reasoning_tags"]) == ("strip", ["<r>", "</r>"])
    signal = served(done, tmp_path)
    assert logit(signal, Item.of("Why?", "<r>\nHm.\n</r>\n\nIt is hot.")) == logit(
        signal, Item.of("Why?", "It is hot.")
    )


@pytest.mark.parametrize(("architecture", "dtype"), [("bert", "float32"), ("llama", "float32"), ("llama", "bfloat16")])
def test_a_model_of_all_weights_is_saved_whole_and_served(architecture: str, dtype: str, tmp_path: Path) -> None:
    """Also from a base in half precision: what is trained is float32, and served as that."""
    template = checkpoints.ENCODER if architecture == "bert" else checkpoints.CHATML
    whole = prepare(tmp_path, split={"held_out": 0.2}, lora=None)
    fast = checkpoints.tokenizer_of(architecture)
    base = checkpoints.classifier(architecture, fast).base_model.to(getattr(torch, dtype))
    checkpoints.save(tmp_path / "base", base, fast)
    checkpoints.name_tokenizer(tmp_path / "base", "LlamaTokenizerFast")
    (tmp_path / "template.jinja").write_text(template)
    whole.go()
    law, written = ((at / "tokenizer.json").read_bytes() for at in (tmp_path / "base", whole.out / "checkpoint"))
    assert written == law
    (tmp_path / "service.yaml").write_text(
        yaml.safe_dump({"signals": {"s": {"base": str(whole.out / "checkpoint"), "device": "cpu"}}, "default": "s"})
    )
    signal = loader.load(settings.read_settings(tmp_path / "service.yaml")).signals["s"]
    rows = zip(whole.begin().select_part(HELD_OUT), whole.json("held_out.json"), strict=True)
    for example, row in rows:
        assert [logit(signal, item) for item in example.record.items] == pytest.approx(row, abs=1e-5)
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(whole.out / "checkpoint" / "model.safetensors")
    trained = {name: next(n for n in after if n.endswith(name)) for name in before if "pooler" not in name}
    assert json.loads((whole.out / "checkpoint" / "config.json").read_text())["dtype"] == "float32"
    assert len(after) == len(trained) + (2 if architecture == "bert" else 1)  # the head; Llama's has no bias
    assert sum(not torch.equal(before[name], after[new]) for name, new in trained.items()) > 10


def test_peft_loads_the_checkpoint_too(finished: dict[str, Run], tmp_path: Path) -> None:
    """The files are PEFT's own format: transformers and PEFT give the golden logits, without any of our code."""
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    done = finished["preference"].copy(tmp_path)
    base = checkpoints.classifier("bert", checkpoints.encoder_tokenizer())
    fast = AutoTokenizer.from_pretrained(yaml.safe_load(done.config.read_text())["base"])
    wrapped = PeftModel.from_pretrained(base, done.out / "checkpoint").eval()
    bert, head = wrapped.base_model.model.bert, wrapped.base_model.model.classifier
    for row in done.json("checkpoint/assay.json")["golden"]:
        messages = [{"role": role, "content": content} for role, content in row["messages"]]
        ids = fast.apply_chat_template(messages, chat_template=checkpoints.ENCODER, tokenize=True, return_dict=False)
        with torch.inference_mode():
            pooled = bert(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
            assert float(head(pooled)) == pytest.approx(row["logit"], abs=1e-4)


def test_a_classifier_serves_as_a_base(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    fast = checkpoints.encoder_tokenizer()
    checkpoints.save(tmp_path / "base", checkpoints.classifier("bert", fast), fast)
    begun.begin()


def test_without_golden_rows_and_template_the_data_and_the_base_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first rows of the data that fit whole; what is served is checked against them."""
    begun = prepare(tmp_path, split={"held_out": 0.2})
    long = tiny.hh_row("first", "flour " * 100, "no")
    rows = [long, *(tiny.hh_row(f"q {i}", f"a fox {i}", "no") for i in range(30))]
    shutil.rmtree(begun.data / "hh_rlhf")
    tiny.write_rows(begun.data / "hh_rlhf" / "x.jsonl.gz", rows)
    begun.change(golden=None, template=None, sources=[tiny.HH])
    base = Path(yaml.safe_load(begun.config.read_text())["base"])
    (base / "chat_template.jinja").write_text(checkpoints.ENCODER)
    begun.go()
    claims = json.loads((begun.out / "checkpoint" / "assay.json").read_text())
    assert [row["messages"] for row in claims["golden"]] == [
        [["user", f"q {i}"], ["assistant", f"a fox {i}"]] for i in range(3)
    ]
    assert "golden: the first 3 rows of the data are stored in the checkpoint" in capsys.readouterr().err
    assert (begun.out / "checkpoint" / "chat_template.jinja").read_text() == checkpoints.ENCODER
    (tmp_path / "s.yaml").write_text(f"signals: {{s: {{base: {base}, adapter: {begun.out}/checkpoint}}}}\ndefault: s\n")
    assert loader.load(settings.read_settings(tmp_path / "s.yaml")).signals["s"].kind == "preference"


def test_a_golden_row_that_does_not_fit_is_reported_before_training(tmp_path: Path) -> None:
    begun = prepare(tmp_path, golden=[["bread " * 100, "yes"]])
    with pytest.raises(ValueError, match="golden"):
        begun.begin()
    assert not begun.out.exists()  # else the corrected configuration would be refused


def test_missing_data_and_a_missing_base_are_reported_before_training(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    with pytest.raises(RecordError, match="hh_rlhf"):
        run(begun.config, tmp_path / "base", begun.out)
    begun.change(base=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"base: .*/absent: no such directory"):
        begun.go()
    assert not (begun.out / "metrics.jsonl").exists()


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    begun.change(objective={"kind": "absolute"})
    options = ["--config", str(begun.config), "--data", str(begun.data), "--out", str(begun.out)]
    result = CliRunner().invoke(app, ["train", "reward", *options])
    assert result.exit_code == 2
    assert "assay train reward: sources: hh_rlhf: format 'hh' has no labelled items" in result.output


def test_the_command_runs(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    options = ["--config", str(begun.config), "--data", str(begun.data), "--out", str(begun.out)]
    begun.change(split={"held_out": 0.2})
    result = CliRunner().invoke(app, ["train", "reward", *options])
    assert result.exit_code == 0, result.output
    assert (begun.out / "results.json").is_file()


def test_a_base_on_the_hub_is_read_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prepare(tmp_path, split={"held_out": 0.2})
    asked.change(base="someone/encoder", revision="0" * 40)
    seen = []

    def download(name: str, *, revision: str, **_: Any) -> str:
        seen.append((name, revision))
        return str(tmp_path / "base")

    monkeypatch.setattr(files, "snapshot_download", download)
    asked.go()
    assert seen == [("someone/encoder", "0" * 40)]
    adapter = asked.json("checkpoint/adapter_config.json")
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("someone/encoder", "0" * 40)
    asked.change(revision=None)
    with pytest.raises(ConfigError, match="a hub id needs its `revision`"):
        asked.begin()


def test_a_model_of_the_raw_output_has_no_folds(tmp_path: Path) -> None:
    raw = prepare(tmp_path, "absolute", objective={"kind": "absolute", "loss": "mse+penalty"})
    with pytest.raises(ConfigError, match="is not a logit"):
        raw.go()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": {"held_out": 0.001}}, "the held-out part has 0 groups to test on"),
        ({"split": {"held_out": 0.2, "folds": 12, "test_folds": 12}}, r"fold \d+ has [01] groups to test on"),
        ({"mixture": [{"step": "keep", "sources": ["hh_rlhf/nobody"]}]}, "nobody"),
        (
            {"objective": {"kind": "preference", "margin": {"kind": "labelled", "scale": 1}}, "sources": [tiny.HH]},
            "no pair has one",
        ),
        ({"max_length": 1000}, "max_length: 1000 is more than the 256 positions"),
        ({"lora": {"r": 2, "alpha": 4, "target_modules": ["query", "vlaue"]}}, "no linear layer 'vlaue'"),
        ({"lora": {"r": 2, "alpha": 4, "target_modules": ["query"], "layers": [0, 99]}}, "no layer 99"),
    ],
)
def test_parts_that_cannot_be_trained_or_tested_are_reported_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    begun = prepare(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        begun.begin()
    assert not begun.out.exists()


def test_what_the_renderer_refuses_is_missing_before_anything_is_written(tmp_path: Path) -> None:
    """The held-out replies hold a control token: none of the others is tested. The corrected data may start."""
    begun = prepare(tmp_path, sources=[tiny.HH], split={"held_out": 0.3})
    held_out = [assign_fold(find_group(q), folds=1, held_out=0.3, seed=3) == HELD_OUT for q in questions()]
    replies = ["[SEP]" if out else "Mix." for out in held_out]
    rows = [tiny.hh_row(q, reply, "I cannot.") for q, reply in zip(questions(), replies, strict=True)]
    shutil.rmtree(begun.data / "hh_rlhf")
    tiny.write_rows(begun.data / "hh_rlhf" / "x.jsonl.gz", rows)
    with pytest.raises(ConfigError, match="the held-out part has 0 groups"):
        begun.begin()
    assert not begun.out.exists()
    write_data(begun.data)
    begun.begin()


def test_faulty_rows_of_a_published_set_are_dropped_and_counted(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    faulty = [tiny.hh_row("empty", "Yes.", " "), tiny.hh_row("same", "Yes.", "Yes."), {"chosen": "", "rejected": ""}]
    tiny.write_rows(begun.data / "hh_rlhf" / "z.test.jsonl.gz", faulty)
    clean = len(prepare(tmp_path / "clean").begin().examples)
    assert len(begun.begin().examples) == clean
    assert begun.json("render.json")["dropped"] == {
        "hh_rlhf: empty completion": 1,
        "hh_rlhf: completions are equal": 1,
        "hh_rlhf: does not end with the assistant": 1,
    }


def test_files_that_are_not_runs_are_not_touched(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    (begun.out / "state").mkdir(parents=True)
    (begun.out / "state" / "precious.txt").write_text("mine")
    with pytest.raises(RunMismatch, match="files that do not belong to a run"):
        begun.begin()
    assert [path.name for path in begun.out.rglob("*")] == ["state", "precious.txt"]


def test_a_start_that_was_killed_at_its_first_file_starts_again(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    begun.out.mkdir()
    (begun.out / "run.json.tmp").write_text("{")
    begun.begin()
    assert [path.name for path in begun.out.glob("run.json*")] == ["run.json"]


def test_half_a_line_of_metrics_does_not_stop_a_run_from_going_on(tmp_path: Path) -> None:
    """As a power cut leaves it."""
    whole = prepare(tmp_path, split={"held_out": 0.2})
    whole.begin().fit("model", whole.begin().exclude_parts(HELD_OUT))
    rows = (whole.out / "metrics.jsonl").read_text()
    (whole.out / "metrics.jsonl").write_text(rows[:-20])
    (whole.out / "state" / "model.pt").unlink()  # the last step's; there is none before it
    whole.go()
    assert (whole.out / "metrics.jsonl").read_text() == rows


def test_the_command_tells_a_file_in_the_way_and_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    begun = prepare(tmp_path, split={"held_out": 0.2})
    options = ["train", "reward", "--config", str(begun.config), "--data", str(begun.data), "--out", str(begun.out)]
    begun.out.write_text("")
    result = CliRunner().invoke(app, options)
    assert (result.exit_code, "File exists" in result.output) == (2, True)
    begun.out.unlink()
    begun.change(optimizer={"learning_rate": 1e30, "batch_prompts": 8, "compute_dtype": "float32", "epochs": 3})
    result = CliRunner().invoke(app, options)
    assert (result.exit_code, "loss is nan" in result.output) == (2, True)


@pytest.mark.parametrize("rate", [1e12, 1e20])
def test_a_run_that_diverges_says_so_and_what_to_do(rate: float, tmp_path: Path) -> None:
    begun = prepare(tmp_path, split={"held_out": 0.2})
    begun.change(
        optimizer={
            "learning_rate": rate,
            "batch_prompts": 4,
            "compute_dtype": "float32",
            "max_grad_norm": None,
            "epochs": 8,
        }
    )
    options = ["train", "reward", "--config", str(begun.config), "--data", str(begun.data), "--out", str(begun.out)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    last = result.output.strip().splitlines()[-1]
    assert "Out of range" not in last
    assert re.search(r"finite|diverges; lower optimizer.learning_rate", last)


def test_a_mixture_must_fit_the_part_that_is_trained_on(tmp_path: Path) -> None:
    """Of all 48 answers enough lie in every range, of those that are not held out not."""
    data = tmp_path / "data"
    labels = [0.45, 0.55, 0.65, 0.75, 0.85, 0.2]
    rows = [{"prompt": f"{WORDS[i % 10]} {i}?", "completion": "fox", "label": labels[i % 6]} for i in range(60)]
    base = prepare(tmp_path / "other").config.parent / "base"
    (data / "own").mkdir(parents=True)
    (data / "own" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: dict[str, Any] = {
        "objective": {"kind": "absolute"},
        "sources": [{"name": "own", "format": "labels"}],
        "split": {"held_out": 0.3},
    }
    for count, fits in ((10, True), (50, False)):
        mixture = [{"step": "under_sample", "rows": count}]
        config = tiny.write_config(tmp_path / f"{count}.yaml", base, **changes, mixture=mixture)
        begun = Run(config, data, tmp_path / f"out{count}")
        if fits:
            begun.begin()
            continue
        with pytest.raises(ConfigError, match="the training part"):
            begun.begin()
        assert not begun.out.exists()


def test_the_weights_of_the_base_are_read_after_the_data(tmp_path: Path) -> None:
    """In a process of its own, so that the peak is its own. bf16 weights cannot stay in the file, as fp32 ones do."""
    fast = checkpoints.encoder_tokenizer()
    base = checkpoints.classifier("bert", fast, num_hidden_layers=1, vocab_size=1_000_000).base_model
    size = base.get_input_embeddings().weight.nbytes
    checkpoints.save(tmp_path / "base", base.to(torch.bfloat16), fast)
    tiny.write_rows(tmp_path / "data" / "hh_rlhf" / "x.jsonl.gz", [tiny.hh_row(q, "a fox", "no") for q in questions()])
    tiny.write_config(tmp_path / "run.yaml", tmp_path / "base")
    code = f"""
import re
from pathlib import Path
from assay_training.config.base import read
from assay_training.config.reward import RewardConfig
from assay_training.reward_model.run import RewardRun

def read_bytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = read_bytes("VmRSS")
root = Path({str(tmp_path)!r})
run = RewardRun(read(root / "run.yaml", RewardConfig), root / "data", root / "out")
print(read_bytes("VmHWM") - before)
run.build_model()
print(read_bytes("VmHWM") - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    begun, built = map(int, ended.stdout.split()[-2:])
    assert begun < size / 2 < size < built


def test_a_base_of_other_tensors_is_reported_before_the_data_are_rendered(tmp_path: Path) -> None:
    begun = prepare(tmp_path)
    weights = begun.config.parent / "base" / "model.safetensors"
    tensors = load_file(weights)
    lost = sorted(name for name in tensors if name.endswith("query.weight"))[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(StartError, match=f"tensor {re.escape(lost)} is missing, so it would be random"):
        begun.begin()
    assert not begun.out.exists()
