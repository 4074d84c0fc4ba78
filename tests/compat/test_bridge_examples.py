"""The examples of the trainers' pages, docs/trainer-*.md: every block of Python runs, and every name exists."""

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from assay_service.compat_settings import CompatSettings

DOCS = Path(__file__).parents[2] / "docs"


def blocks(trainer: str, kind: str) -> list[str]:
    page = (DOCS / f"trainer-{trainer}.md").read_text()
    found: list[str] = re.findall(rf"^```{kind}\n(.*?)^```", page, flags=re.S | re.M)
    assert found
    return found


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> None:
    """Put a module with these values in the place of a trainer's, which is not installed here."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    module = ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "example", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        ("openrlhf", "reward_func"),
        ("slime", "rm"),
        ("verifiers", "assay"),
        ("tinker", "preference_model"),
    ],
)
def test_examples_without_a_trainer_define_what_the_trainer_calls(trainer: str, name: str) -> None:
    for code in blocks(trainer, "python"):
        assert callable(run(code)[name])


def test_areal_imports_the_workflow_and_the_function_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    code, settings = blocks("areal", "python")
    assert callable(run(code)["reward_fn"].score_async)
    stub(monkeypatch, "areal.workflow.rlvr", RLVRWorkflow=type("RLVRWorkflow", (), {}))
    module, name = run(settings)["workflow"].rsplit(".", 1)
    assert getattr(import_module(module), name).__name__ == "AssayWorkflow"
    assert run(settings)["workflow_kwargs"] == {"reward_fn": "rewards.reward_fn"}


def test_ms_swift_registers_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    orms: dict[str, Any] = {}
    stub(monkeypatch, "swift.rewards", orms=orms)
    run(*blocks("ms-swift", "python"))
    assert sorted(orms) == ["absolute", "assay", "preference"]
    assert all(callable(cls(args=None)) for cls in orms.values())


def test_nemo_rl_registers_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, str] = {}
    registry: dict[str, str] = {}
    stub(monkeypatch, "nemo_rl.distributed.virtual_cluster", PY_EXECUTABLES=type("P", (), {"SYSTEM": sys.executable}))
    stub(monkeypatch, "nemo_rl.distributed.ray_actor_environment_registry", ACTOR_ENVIRONMENT_REGISTRY=registry)
    stub(monkeypatch, "nemo_rl.environments.utils", register_env=registered.__setitem__)
    run(*blocks("nemo-rl", "python"))
    assert list(registry) == [registered["assay"]]
    module, name = registered["assay"].rsplit(".", 1)
    config = yaml.safe_load(*blocks("nemo-rl", "yaml"))["env"]["assay"]
    bridge = import_module(module)
    assert bridge.RewardReader(config)
    assert f'"{name}"' in Path(str(bridge.__file__)).read_text()


def test_skyrl_registers_the_environment() -> None:
    gym = pytest.importorskip("skyrl_gym")
    gym.envs.registration.registry.pop("assay", None)
    run(*blocks("skyrl", "python"))
    config = yaml.safe_load(*blocks("skyrl", "yaml"))["environment"]
    assert gym.make(config["env_class"], env_config=config["skyrl_gym"]["assay"], extras={})


def test_rllm_wraps_the_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "rllm", evaluator=lambda function: function)
    assert callable(run(*blocks("rllm", "python"))["evaluator"])


def test_flags_name_what_exists() -> None:
    manager, function = blocks("verl", "")
    bridge = import_module("assay_client.integrations.verl")
    for flags, key in ((manager, r"reward_manager\.name"), (function, r"custom_reward_function\.name")):
        assert f"pkg://{bridge.__name__}\n" in flags
        assert hasattr(bridge, re.search(rf"{key}=(\w+)", flags)[1])  # type: ignore[index]
    rewards = tomllib.loads(*blocks("verifiers", "toml"))["env"]["taskset"]["task"]["rewards"]
    assert rewards["assay"] == {"fn": "rewards:assay", "weight": 1.0}
    service, _ = blocks("nemo-gym", "yaml")
    assert CompatSettings.model_validate(yaml.safe_load(service)["compat"]).root == "nemo_gym"
