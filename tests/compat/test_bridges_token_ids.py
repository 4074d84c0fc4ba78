"""Token ids from trainers and files: sent instead of text, they have the scores of their text."""

import asyncio
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from assay_client import AsyncRewardClient, InvalidInput, Item, ItemFailed, ModelNotFound, RewardClient
from assay_client.integrations import areal, slime, trl, verl
from tests.compat.test_bridges_verl import TOKENIZER, Proto
from tests.compat.test_bulk import invoke

PROMPT = [{"role": "user", "content": "say hi"}]
RENDERED = "<|im_start|>user\nsay hi<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


@pytest.fixture(scope="module")
def sha256(tiny: dict[str, Any]) -> str:
    return hashlib.sha256((tiny["root"] / "base" / "tokenizer.json").read_bytes()).hexdigest()


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


PROMPT_IDS, STOP_IDS, CUT_IDS, BAD_IDS = map(encode, (RENDERED, "hello<|im_end|>", "hello", "a<|im_start|>b<|im_end|>"))


def read_texts(url: str, model: str | None = None) -> tuple[float, float]:
    with RewardClient(url) as client:
        stop, cut = client.score([(PROMPT, "hello", "stop"), (PROMPT, "hello", "length")], model=model).scores()
    return stop, cut


def test_both_clients_score_and_render_token_ids(url: str, sha256: str) -> None:
    items = [
        Item(prompt_ids=PROMPT_IDS, completion_ids=STOP_IDS, id="a"),
        {"prompt_ids": PROMPT_IDS, "completion_ids": CUT_IDS},
        Item(prompt_ids=PROMPT_IDS, completion_ids=BAD_IDS),
        ("say hi", "hello", "stop"),
    ]

    async def ask() -> Any:
        async with AsyncRewardClient(url, chunk_size=2) as client:
            return await client.score(items, tokenizer_sha256=sha256)  # type: ignore[arg-type]

    stop, cut = read_texts(url)
    with RewardClient([url, url.replace("127.0.0.1", "localhost")], chunk_size=1) as client:
        results = [client.score(items, tokenizer_sha256=sha256), asyncio.run(ask())]  # type: ignore[arg-type]
        shown = client.render(items[:1], model="pref", tokenizer_sha256=sha256)  # type: ignore[arg-type]
    for result in results:
        assert result.scores(missing=None) == [stop, cut, None, stop]
        assert result.data[0].id == "a"
    assert shown.data[0].signals["pref"].text == f"{RENDERED}hello<|im_end|>\n"  # type: ignore[union-attr]


def test_trl_scores_completion_ids_with_a_column_of_prompt_ids(url: str, sha256: str) -> None:
    stop, cut = read_texts(url)
    columns: dict[str, Any] = {
        "prompts": [PROMPT] * 3,
        "completions": ["not read"] * 3,
        "completion_ids": [STOP_IDS, CUT_IDS, BAD_IDS],
        "prompt_ids": [PROMPT_IDS] * 3,
        "trainer_state": SimpleNamespace(global_step=1),
    }
    function = trl.reward_function(url, eos_token_id=2, tokenizer_sha256=sha256)
    assert function(**columns) == [stop, cut, None]
    coroutine = trl.async_reward_function(url, eos_token_id=2, tokenizer_sha256=sha256)
    assert asyncio.run(coroutine(**columns)) == [stop, cut, None]  # type: ignore[arg-type]
    pref, absolute = trl.signal_rewards(url, ["pref", "abs"], eos_token_id=2, tokenizer_sha256=sha256)
    assert pref(**columns)[:2] == [*read_texts(url, "pref")]
    assert absolute(**columns)[:2] == [*read_texts(url, "abs")]
    del columns["prompt_ids"]
    with pytest.raises(InvalidInput, match="add a column `prompt_ids`"):
        function(**columns)


def test_verl_scores_ids_without_their_pads(url: str, sha256: str) -> None:
    stop, cut = read_texts(url)

    def row(ids: list[int]) -> SimpleNamespace:
        left, right = 3, 5
        prompts = torch.tensor([TOKENIZER.pad_token_id] * left + PROMPT_IDS)
        responses = torch.tensor(ids + [TOKENIZER.pad_token_id] * right)
        mask = torch.tensor([0] * left + [1] * (len(PROMPT_IDS) + len(ids)) + [0] * right)
        batch = {"prompts": prompts, "responses": responses, "attention_mask": mask}
        return SimpleNamespace(batch=batch, non_tensor_batch={})

    config = SimpleNamespace(reward={"reward_kwargs": {"url": url, "tokenizer_sha256": sha256}})
    manager = verl.AssayRewardManager(config, TOKENIZER, None)
    scores = [asyncio.run(manager.run_single(Proto([row(ids)])))["reward_score"] for ids in (STOP_IDS, CUT_IDS)]
    assert scores == [stop, cut]
    with pytest.raises(ItemFailed, match="special_tokens"):
        asyncio.run(manager.run_single(Proto([row(BAD_IDS)])))


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_areal_scores_ids(url: str, sha256: str, convert: Any) -> None:
    reward_fn = areal.make_reward_fn(url, end_token=END, tokenizer_sha256=sha256)
    stop, cut = read_texts(url)
    scores = [reward_fn("not read", "not read", convert(PROMPT_IDS), convert(ids)) for ids in (STOP_IDS, CUT_IDS)]
    assert scores == [stop, cut]
    with pytest.raises(ItemFailed):
        reward_fn("", "", PROMPT_IDS, BAD_IDS)
    with pytest.raises(ItemFailed, match=r"completion_ids\[1\]"):
        reward_fn("", "", PROMPT_IDS, [5, -1])


def test_slime_scores_the_tokens_of_samples(url: str, sha256: str) -> None:
    def sample(ids: list[int], status: str = "completed", prompt: Any = PROMPT) -> SimpleNamespace:
        return SimpleNamespace(
            prompt=prompt, response="not read", status=status, tokens=PROMPT_IDS + ids, response_length=len(ids)
        )

    stop, cut = read_texts(url)
    rm = slime.make_rm(url, end_token=END, tokenizer_sha256=sha256)
    group = [sample(STOP_IDS), sample(CUT_IDS, "truncated", RENDERED)]
    assert asyncio.run(rm(SimpleNamespace(), group)) == [stop, cut]
    assert asyncio.run(rm(SimpleNamespace(), group[0])) == stop
    with pytest.raises(InvalidInput, match="aborted"):
        asyncio.run(rm(SimpleNamespace(), sample(STOP_IDS, "aborted")))
    empty = SimpleNamespace(prompt=PROMPT, response="x", status="completed", tokens=[], response_length=0)
    with pytest.raises(InvalidInput, match="no `tokens`"):
        asyncio.run(rm(SimpleNamespace(), empty))


def test_a_hash_that_is_none_is_refused_when_the_reward_is_made(url: str) -> None:
    for value in ("", "abc", "A" * 64, 3):
        for make in (
            lambda sha256: trl.reward_function(url, eos_token_id=2, tokenizer_sha256=sha256),
            lambda sha256: slime.make_rm(url, end_token=END, tokenizer_sha256=sha256),
            lambda sha256: areal.make_reward_fn(url, end_token=END, tokenizer_sha256=sha256),
        ):
            with pytest.raises(InvalidInput, match="tokenizer_sha256"):
                make(value)
    with RewardClient(url) as client, pytest.raises(ModelNotFound):
        client.score([("p", "c")], model="none", tokenizer_sha256="0" * 64)


def test_files_with_token_ids(url: str, sha256: str, tmp_path: Path) -> None:
    rows = [
        {"prompt_ids": PROMPT_IDS, "completion_ids": STOP_IDS, "id": "a", "step": 1},
        {"prompt_ids": PROMPT_IDS, "completion_ids": CUT_IDS, "id": "b", "step": 2},
    ]
    lines, table = tmp_path / "in.jsonl", tmp_path / "in.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    words = ["--url", url, "--tokenizer-sha256", sha256]
    for source in (lines, table):
        code, out, _ = invoke("score", str(source), *words)
        found = [json.loads(line) for line in out.splitlines()]
        assert (code, [row["score"] for row in found]) == (0, [*read_texts(url)])
        assert [row["extra"] for row in found] == [{"step": 1}, {"step": 2}]
    code, out, _ = invoke("render", str(lines), *words, "--model", "pref", "--json")
    assert (code, "hello" in json.loads(out.splitlines()[0])["signals"]["pref"]["text"]) == (0, True)
    code, out, _ = invoke("diff", url, url, str(lines), *words[2:], "--json")
    assert (code, json.loads(out)["scores"]["bit_equal"]) == (0, 2)
    code, _, told = invoke("score", str(lines), "--url", url)
    assert (code, "--tokenizer-sha256" in told) == (2, True)


def test_ids_beside_text_are_other_keys_of_a_row_unless_they_are_asked_for(
    url: str, sha256: str, tmp_path: Path
) -> None:
    """A log of a trainer has both; the text is scored, and nothing is lost."""
    row: dict[str, Any] = {"prompt": PROMPT, "completion": "hello", "completion_ids": CUT_IDS}
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row) + "\n")
    code, out, _ = invoke("score", str(source), "--url", url)
    assert (code, json.loads(out)["score"], json.loads(out)["extra"]) == (
        0,
        read_texts(url)[0],
        {"completion_ids": CUT_IDS},
    )
    code, _, told = invoke("score", str(source), "--url", url, "--tokenizer-sha256", sha256)
    assert (code, ":1: an item has exactly one of" in told) == (2, True)
