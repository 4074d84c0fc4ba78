"""How the experiments judge policies: wins against the first policy's answers, and the distance to it."""

from pathlib import Path

import pytest
import torch

from assay_client.client import RewardClient
from assay_experiments.policies import Bench, compute_best_of, compute_wins, summarize
from assay_service.scoring.item import Message
from assay_training.config.rollout import Reward
from assay_training.records.record import Prompt
from assay_training.rollout.collect import ScoredCompletion
from assay_training.rollout.completion import Completion, Ids
from assay_training.rollout.engines.base import Sampling
from assay_training.rollout.prompts import TokenizedPrompt
from assay_training.rollout.rewards import CompletionScore, Rewards
from tests import checkpoints

FAST = checkpoints.decoder_tokenizer()
ASKED = [TokenizedPrompt(Prompt("s", text, (Message("user", text),)), (20 + i, 21, 22)) for i, text in enumerate("ab")]


def sample(asked: TokenizedPrompt, gold: float, ids: Ids = (30, 31), proxy: float = 0.0) -> ScoredCompletion:
    worth = CompletionScore(0.0, {"gold": gold, "proxy": proxy})
    return ScoredCompletion(asked, Completion(asked.ids, ids, (0.0,) * len(ids), "length"), "x", worth)


def test_an_answer_wins_against_every_one_of_the_first_policy_to_its_prompt() -> None:
    """Prompt a: 2 and 0 against 1 and 1 are two wins of four. Prompt b: 1 against 1 and 0 is a tie and a win."""
    own = [sample(ASKED[0], 2.0), sample(ASKED[0], 0.0), sample(ASKED[1], 1.0)]
    first = [sample(ASKED[0], 1.0), sample(ASKED[0], 1.0), sample(ASKED[1], 1.0), sample(ASKED[1], 0.0)]
    found = compute_wins(own, first)["gold"]
    assert (found["value"], found["n"]) == (pytest.approx((0.5 + 0.75) / 2), 2)
    assert compute_wins(first, first)["gold"]["value"] == 0.5


def test_the_best_by_one_score_is_counted_by_the_others() -> None:
    """Answers of gold value 1, 2, 3 that the proxy has at 3, 1, 2. Of the three pairs the proxy's best have 1, 1 and 3;
    of each pair against the third answer: 3 against 1 wins, 1 against 2 and 1 against 3 lose."""
    first = [
        sample(prompt, gold, (30,) * 5, proxy)
        for prompt in ASKED
        for gold, proxy in ((1.0, 3.0), (2.0, 1.0), (3.0, 2.0))
    ]
    found = compute_best_of(2, {"proxy": 2.0}, first)
    assert found["means"] == {"gold": pytest.approx(5 / 3), "proxy": pytest.approx(8 / 3), "length": 5, "ends": 0}
    rates = {name: rate["value"] for name, rate in found["wins"].items()}
    assert rates == {"gold": pytest.approx(1 / 3), "proxy": pytest.approx(2 / 3), "length": 0.5, "ends": 0.5}
    assert found["kl"] == pytest.approx(0.193147, abs=1e-6)  # ln 2 - 1/2


def test_a_policy_is_summarized_by_means_and_by_wins() -> None:
    own = [sample(prompt, 1.0, (30,)) for prompt in ASKED]
    found = summarize(1.5, own, [sample(prompt, 2.0) for prompt in ASKED])
    assert (found["kl"], found["means"]["length"], found["completions"]) == (1.5, 1, 2)
    assert (found["wins"]["gold"]["value"], found["wins"]["length"]["value"]) == (0, 0)


def test_the_distance_is_what_transformers_own_log_probabilities_say(tmp_path: Path) -> None:
    models = [checkpoints.language_model("llama", FAST, seed=seed) for seed in (1, 2)]
    first, other = (checkpoints.save(tmp_path / str(i), model, FAST) for i, model in enumerate(models))
    samples = [sample(ASKED[0], 0.0, (30, 31, 32)), sample(ASKED[1], 0.0, (40,))]
    rewards = Rewards(RewardClient("http://assay.test"), Reward(model="gold"), None)
    bench = Bench(first, ASKED, FAST, Sampling(4, 1.0, FAST.eos_token_id), rewards)
    assert bench.compute_kl(first, samples) == 0
    expected = 0.0
    for one in samples:
        ids = torch.tensor([one.completion.prompt + one.completion.ids])
        with torch.no_grad():
            logprobs = [model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]) for model in models]
        expected += float((logprobs[1] - logprobs[0])[len(one.completion.prompt) - 1 :].sum()) / len(samples)
    assert bench.compute_kl(other, samples) == pytest.approx(expected, abs=1e-4)
