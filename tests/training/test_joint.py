"""Two heads on one trunk: trained together on their own data, tested, saved, and served by one forward pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient

from assay_service import create_app, read_settings
from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import ConfigError, read
from assay_training.config.joint import JointConfig
from assay_training.data.examples import Example
from assay_training.loop.step import MicroBatch
from assay_training.records.record import Labelled
from assay_training.reward_model.command import run
from assay_training.reward_model.joint import HeadExample, Joint, JointRun
from assay_training.reward_model.objectives import Pairwise, Pointwise
from tests.training import tiny
from tests.training.test_cross_validation import write_data

HEADS: dict[str, Any] = {
    "preference": {"objective": {"kind": "preference"}, "sources": [tiny.HH], "golden": [["fox", "dog"]]},
    "absolute": {"objective": {"kind": "absolute"}, "sources": [tiny.DIASAFETY], "weight": 0.5},
}


def write_joint(root: Path, **changes: Any) -> Path:
    path = tiny.write_config(root / "run.yaml", tiny.save_base(root / "base"), split={"held_out": 0.2})
    config = yaml.safe_load(path.read_text())
    for key in ("objective", "sources", "golden"):
        del config[key]
    path.write_text(yaml.safe_dump({**config, "heads": HEADS, **changes}, sort_keys=False))
    write_data(root / "data")
    return path


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_both_heads_learn_and_one_forward_pass_serves_them_as_trained(lora: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 0.02, "batch_prompts": 8, "epochs": 6}}
    changes["optimizer"]["compute_dtype"] = "float32"
    path = write_joint(tmp_path, **changes, **({} if lora else {"lora": None}))
    out = tmp_path / "out"
    assert run(path, tmp_path / "data", out) == out / "checkpoint"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    manifest = json.loads((out / "checkpoint/assay.json").read_text())
    assert [(o["name"], o["kind"], len(o["golden"])) for o in manifest["outputs"]] == [
        ("preference", "preference", 1),
        ("absolute", "absolute", 3),
    ]
    joint = JointRun(read(path, JointConfig), tmp_path / "data", out)
    with TestClient(create_app(read_settings(out / "service.yaml"))) as client:
        for name, own in joint.runs.items():
            stored = json.loads((out / "heads" / name / "held_out.json").read_text())
            for example, row in zip(own.select_part(HELD_OUT), stored, strict=True):
                assert served(client, name, example) == pytest.approx(row, abs=1e-5)
        lines = client.get("/metrics").text.splitlines()
        models = {m["id"]: m["kind"] for m in client.get("/v1/models").json()["data"]}
    assert models == {"preference": "preference", "absolute": "absolute"}
    assert [line for line in lines if line.startswith('assay_forward_seconds_count{signal="preference+absolute"}')]
    assert not [line for line in lines if line.startswith('assay_forward_seconds_count{signal="absolute"}')]
    card = (out / "checkpoint/MODEL_CARD.md").read_text()
    assert "20% of the groups (a group is a question or a first human turn) were held out and tested." in card
    assert "frozen" not in card.split("## To reproduce")[0].lower()
    assert card.count("## To reproduce") == 1
    assert "heads:\n  preference:\n    objective:" in card
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    path.write_text(path.read_text().replace("held_out: 0.2", "held_out: 0.2\n  frozen_head: 20"))
    run(path, tmp_path / "data", out)  # everything is stored, so nothing is trained again
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before
    card = (out / "checkpoint/MODEL_CARD.md").read_text()
    tables = [line for line in card.splitlines() if line.startswith(("| hh_rlhf/helpful-base |", "| diasafety | "))]
    assert all(line.count(" | ") == 6 for line in (tables[0], tables[1])), tables
    assert card.count("fitted on at most 20 training records") == 2
    for name, own in joint.runs.items():
        frozen = json.loads((out / "heads" / name / "frozen_head_20.json").read_text())
        assert [len(row) for row in frozen] == [len(e.sequences) for e in own.select_part(HELD_OUT)]
    path.write_text(path.read_text().replace("frozen_head: 20", "frozen_head: 30"))
    run(path, tmp_path / "data", out)  # another number is another baseline
    assert (out / "checkpoint/MODEL_CARD.md").read_text().count("fitted on at most 30 training records") == 2
    assert sorted(file.name for file in (out / "heads/absolute").glob("frozen_head*")) == [
        "frozen_head_20.json",
        "frozen_head_30.json",
    ]


def served(client: TestClient, name: str, example: Example) -> list[float]:
    items = [
        {"messages": [{"role": m.role, "content": m.content} for m in item.messages]} for item in example.record.items
    ]
    answer = client.post("/v1/score", json={"items": items, "model": name, "truncation": "prompt_left"})
    return [row["score"] for row in answer.json()["data"]]


def test_the_loss_is_the_weighted_sum_of_the_means_of_each_head(tmp_path: Path) -> None:
    path = write_joint(tmp_path)
    joint = JointRun(read(path, JointConfig), tmp_path / "data", tmp_path / "out")
    model = joint._build_model()
    objectives = {name: own.build_objective(model) for name, own in joint.runs.items()}
    examples = {name: own.examples[:5] for name, own in joint.runs.items()}
    batch = [HeadExample(name, example) for name, own in examples.items() for example in own]
    alone = {}
    for name, objective in objectives.items():
        assert isinstance(objective, Pairwise | Pointwise)
        whole: Any = objective
        shared = whole.begin(examples[name], [MicroBatch(examples[name], 1)], lambda t: t)
        alone[name] = float(whole.loss(examples[name], shared).detach())
    assert isinstance(examples["absolute"][0].record, Labelled)
    both = Joint(objectives, {"preference": 1.0, "absolute": 0.5})
    for parts in ([batch], [batch[:3], batch[3:7], batch[7:]]):
        mine = [MicroBatch(part, 1) for part in parts]
        shared = both.begin(batch, mine, lambda t: t)
        total = sum(float(both.loss(part, shared).detach()) for part in parts)
        assert total == pytest.approx(alone["preference"] + 0.5 * alone["absolute"], rel=1e-5)
    only = [example for example in batch if example.head == "absolute"]
    shared = both.begin(only, [MicroBatch(only, 1)], lambda t: t)
    assert float(both.loss(only, shared).detach()) == pytest.approx(0.5 * alone["absolute"], rel=1e-5)


def test_all_heads_share_one_adapter_and_every_parameter_is_trained_once(tmp_path: Path) -> None:
    joint = JointRun(read(write_joint(tmp_path), JointConfig), tmp_path / "data", tmp_path / "out")
    model = joint._build_model()
    parameters = joint._list_parameters(model)
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    assert model.get_adapter_names("preference") == model.get_adapter_names("absolute")
    weights = [model.get_head(name).weight for name in joint.runs]
    assert all(any(weight is parameter for parameter in parameters) for weight in weights)
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"preference": HEADS["preference"]}}, "heads"),
        ({"split": {"held_out": 0.2, "folds": 2, "test_folds": 2}}, "remove `folds`"),
        ({"objective": {"kind": "preference"}}, "objective"),
        ({"heads": {**HEADS, "absolute": {**HEADS["absolute"], "weight": 0}}}, "weight"),
        (
            {
                "heads": {
                    **HEADS,
                    "absolute": {**HEADS["absolute"], "objective": {"kind": "absolute", "loss": "mse+penalty"}},
                }
            },
            "not a logit",
        ),
        (
            {
                "heads": {
                    **HEADS,
                    "preference": {**HEADS["preference"], "mixture": [{"step": "mismatched", "share": 0.5}]},
                }
            },
            "mixture",
        ),
        (
            {"heads": {**HEADS, "absolute": {**HEADS["absolute"], "max_length": 9}}},
            r"heads\.absolute\.max_length: unknown key; the keys here are golden, mixture, objective, sources, weight",
        ),
        ({"heads": {**HEADS, "../x": HEADS["absolute"]}}, r"heads: '\.\./x' does not match"),
    ],
    ids=[
        "one head",
        "folds",
        "an objective beside heads",
        "no weight",
        "no logit",
        "a step for labels",
        "a key of the run",
        "a path",
    ],
)
def test_wrong_configurations_are_refused_by_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(write_joint(tmp_path, **changes), JointConfig)
