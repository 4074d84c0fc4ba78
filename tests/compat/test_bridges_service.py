"""Bridges that make their own client: its addresses and key come from the trainer's configuration.

A gateway, which asks for a key, stands before the service with tiny models.
"""

import asyncio
import pickle
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from assay_client import InvalidInput, RewardClient, Unauthorized
from assay_client.integrations import areal, nemo_rl, skyrl, verl
from assay_client.integrations._service import read_service
from tests.compat.conftest import Answer, run_gateway
from tests.compat.test_bridges_environments import log
from tests.compat.test_bridges_verl import TOKENIZER, Proto, row

KEY = "sk-Secret/of+mine"
PROMPT = [{"role": "user", "content": "say hi"}]
RENDERED = "<|im_start|>user\nsay hi<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


@pytest.fixture
def gateway(url: str) -> Iterator[str]:
    def check_key(request: BaseHTTPRequestHandler) -> Answer | None:
        given = request.headers.get("Authorization")
        return None if given == f"Bearer {KEY}" else (401, f"wrong key: {given}".encode())

    with run_gateway(url, check_key) as address:
        yield address


@pytest.fixture
def dead() -> Iterator[str]:
    """An address that nothing listens at, and that no other program takes meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def ask_verl(config: dict[str, Any]) -> float:
    manager = verl.AssayRewardManager(SimpleNamespace(reward={"reward_kwargs": config}), TOKENIZER, None)
    score: float = asyncio.run(manager.run_single(Proto([row("hello<|im_end|>")])))["reward_score"]
    return score


def ask_verl_function(config: dict[str, Any]) -> float:
    arguments = {"solution_str": "hello", "data_source": "d", "extra_info": {"prompt": PROMPT}, **config}
    return asyncio.run(verl.compute_score(**arguments))["score"]


def ask_skyrl(config: dict[str, Any]) -> float:
    pytest.importorskip("skyrl_gym")
    environment = skyrl.make_env_class()(config, {})
    environment.init(PROMPT)
    score: float = environment.step("hello")["reward"]
    return score


def ask_nemo_rl(config: dict[str, Any]) -> float:
    reader = nemo_rl.RewardReader({**config, "end_token": END})
    (score,) = reader.score([log()])
    assert isinstance(score, float)
    return score


def ask_areal(config: dict[str, Any]) -> float:
    reward_fn = areal.make_reward_fn(**config, end_token=END)
    assert "Secret" not in repr(reward_fn)
    score: float = pickle.loads(pickle.dumps(reward_fn))(RENDERED, "hello<|im_end|>", [1], [2], messages=PROMPT)
    return score


Ask = Callable[[dict[str, Any]], float]
BRIDGES = [ask_verl, ask_verl_function, ask_skyrl, ask_nemo_rl, ask_areal]


@pytest.mark.parametrize("ask", BRIDGES)
def test_a_bridge_sends_the_key_to_each_of_its_addresses(
    ask: Ask, url: str, gateway: str, dead: str, tmp_path: Path
) -> None:
    with RewardClient(url) as client:
        (expected,) = client.score([(PROMPT, "hello", "stop")]).scores()
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    # Hydra and YAML give lists of OmegaConf's own class.
    addresses = OmegaConf.create({"url": [dead, gateway]}).url
    assert type(addresses) is not list
    for given in (gateway, addresses, [gateway, dead], (dead, gateway)):
        assert ask({"url": given, "api_key_file": str(file)}) == expected
    # The scorer is kept by key: another key is another client, and never the one that has the right key.
    file.write_text("sk-Secret/other\n")
    for config in ({"api_key_file": str(file)}, {}):
        with pytest.raises(Unauthorized) as raised:
            ask({"url": gateway, **config})
        assert "Secret" not in f"{raised.value} {raised.value!r}"
    file.write_text(KEY)
    assert ask({"url": gateway, "api_key_file": str(file)}) == expected


REFUSED: dict[str, list[Any]] = {
    "url": [None, 3, "", [], {"http://a": 1}, b"http://a", "localhost", ["http://a", 3], ["http://a", "http://a"]],
    "api_key_file": [3, ["key"], "/nowhere/key"],
    "timeout_s": ["5", True, -1.0],
    "max_retries": [1.5, "1", True, -1],
    "max_concurrency": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_an_option_of_another_form_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"{name}"):
        nemo_rl.RewardReader({"url": "http://a", "end_token": END, name: value})


def test_several_addresses_in_one_text_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"`url`: .*as a list"):
        read_service({"url": "http://a:1,http://b:2"})


@pytest.mark.parametrize("content", [b"", b"\n", b"Secret of mine\n", b"S\xc3\xa9cret\n"])
def test_a_file_without_a_key_is_refused_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidInput, match="api_key") as raised:
        nemo_rl.RewardReader({"url": "http://a", "api_key_file": str(tmp_path / "file"), "end_token": END})
    assert "cret" not in str(raised.value)


def test_settings_of_the_client_are_options(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    settings = {"timeout_s": 2, "deadline_s": 9.5, "max_retries": 0, "chunk_size": 4, "max_concurrency": 3}
    service = read_service({"url": "http://a/", "api_key_file": str(tmp_path / "key"), "model": "crs", **settings})
    assert service.to_arguments() == {"base_url": ("http://a",), "api_key": KEY, "ca_file": None, **settings}
    assert "Secret" not in repr(service)
    assert hash(service) == hash(read_service({"url": ["http://a"], "api_key_file": str(tmp_path / "key"), **settings}))
