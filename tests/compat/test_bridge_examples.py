"""The examples of the trainers' pages that need no trainer, or one that the package index does not have.

The other examples are run by `test_frameworks.py`, with the frameworks themselves. slime, NeMo-RL and rLLM cannot be
installed, so their flags and calls are compared with facts of their sources at one commit, in the folder `recorded`.
"""

import argparse
import inspect
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.compat.conftest import RECORDED
from tests.compat.examples import DOCS, read_texts

INTERFACES = json.loads((RECORDED / "interfaces.json").read_text())


def blocks(trainer: str, kind: str) -> list[str]:
    return read_texts(f"trainer-{trainer}", kind)


def install_recorded(monkeypatch: pytest.MonkeyPatch, framework: str, values: dict[str, Any]) -> None:
    """Put modules in the place of a trainer's: the names of its source at one commit, with these values.

    A function has the recorded parameters, so a call that the trainer's own would refuse is an error here, too.
    """
    for name, members in INTERFACES[framework]["modules"].items():
        parts = name.split(".")
        for end in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        module = ModuleType(name)
        for member, fact in members.items():
            value = values[member]
            if isinstance(fact, list):
                assert set(vars(value)) <= set(fact)
            elif fact != "dict":
                value = check_calls(fact, value)
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)


def check_calls(parameters: str, function: Any) -> Any:
    """Return a function that refuses calls that do not fit the parameters."""
    recorded: dict[str, Any] = {}
    exec(f"def f{parameters}: pass", recorded)
    signature = inspect.signature(recorded["f"])

    def call(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return function(*args, **kwargs)

    return call


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


def test_nemo_rl_registers_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, str] = {}
    registry: dict[str, str] = {}
    values = {"ACTOR_ENVIRONMENT_REGISTRY": registry, "register_env": registered.__setitem__}
    install_recorded(monkeypatch, "nemo_rl", {**values, "PY_EXECUTABLES": SimpleNamespace(SYSTEM=sys.executable)})
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
    install_recorded(monkeypatch, "rllm", {"evaluator": lambda fn: fn})
    assert callable(run(*blocks("rllm", "python"))["evaluator"])


def read_slime_parser() -> argparse.ArgumentParser:
    """A parser of slime's options, from the record of its source: names, and whether a value follows."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for line in (RECORDED / "slime-624b824a-options.tsv").read_text().splitlines()[1:]:
        name, kind = line.split("\t")
        if name.startswith("--"):
            parser.add_argument(name, action="store_true" if kind == "flag" else "store")
    return parser


def test_slimes_flags_are_its_options() -> None:
    page = (DOCS / "trainer-slime.md").read_text()
    remote, parts, function = (read_slime_parser().parse_args(block.split()) for block in blocks("slime", ""))
    assert parts.reward_key == "reward"
    assert (remote.rm_type, remote.rm_url) == ("remote_rm", "http://HOST:PORT/compat/slime/reward")
    assert (function.custom_rm_path, function.group_rm) == ("rewards.rm", True)
    with pytest.raises(SystemExit):
        read_slime_parser().parse_args(["--group-rms"])
    inline = [flags.split() for flags in re.findall(r"`(--[^`\n]+)`", page)]
    assert len(inline) >= 5
    for flags in inline:
        whole = [*flags, "x"] if flags[0] in NEEDS_VALUE and len(flags) == 1 else flags
        read_slime_parser().parse_args(whole)


NEEDS_VALUE = {
    "--reward-key",
    "--eval-reward-key",
    "--rm-type",
    "--rm-url",
    "--custom-rm-path",
}  # their names alone stand in sentences


def test_verls_flags_name_what_the_bridge_has() -> None:
    """`drive_verl.py` composes them by verl's own configuration, where verl is installed."""
    bridge = import_module("assay_client.integrations.verl")
    for flags, key in zip(blocks("verl", ""), ("reward_manager", "custom_reward_function"), strict=True):
        assert f"pkg://{bridge.__name__}\n" in flags
        named = re.search(rf"{key}\.name=(\w+)", flags)
        assert named
        assert hasattr(bridge, named[1])
