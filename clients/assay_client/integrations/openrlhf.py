"""Give OpenRLHF a `reward_func` for a Python file in `--reward.remote_url`.

Source: https://github.com/OpenRLHF/OpenRLHF, `openrlhf/utils/agent.py` (0.11.2). Without a file, the same option takes
the service's address: `http://HOST:PORT/compat/openrlhf/get_reward`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from assay_client.client import RewardClient
from assay_client.integrations._rendered import score_rendered
from assay_client.integrations._single import open_client

RewardFunction: TypeAlias = Callable[..., dict[str, Any]]


def make_reward_func(client: RewardClient | str) -> RewardFunction:
    """Return a `reward_func(queries, prompts, labels)`, whose reward is the score of the configured model.

    The service reads the rendered text; `compat.wires.openrlhf` of its configuration names the policy's template and
    the model. An error is raised, and OpenRLHF then has no reward for the completion. It never becomes a 0.

    Args:
        client: the client, or the address of the service.
    """
    opened = open_client(client)

    def reward_func(
        queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object], **_: object
    ) -> dict[str, Any]:
        """Return `rewards`, the logits as `extra_logs`, and `scores` if the model has a probability.

        Args:
            queries: the prompts with their completions, decoded with special tokens.
            prompts: the prompts alone.
            labels: the labels of the data set, which are not used.
        """
        scored = score_rendered(opened, queries, prompts)
        answer: dict[str, Any] = {"rewards": scored.rewards, "extra_logs": scored.logits}
        if scored.probabilities is not None:
            answer["scores"] = scored.probabilities
        return answer

    return reward_func
