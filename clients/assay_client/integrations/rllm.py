"""Give rLLM an evaluator that scores over HTTP.

Source: https://github.com/rllm-org/rllm, `rllm/eval` and `rllm/types.py` (9beb6e0). rLLM has no value for a missing
reward, so that an episode that cannot be scored raises an error.
"""

from collections.abc import Callable, Mapping
from typing import Any

from assay_client.client import RewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rows import build_rows, convert_finish_reason
from assay_client.integrations._scorer import ScoreOptions, Scorer
from assay_client.integrations._single import open_client, read_parts, score_single
from assay_client.types import FinishReason


def make_evaluator(
    client: RewardClient | str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    correct_above: float = 0.0,
) -> Callable[..., Any]:
    """Return `f(task, episode)` for `rllm.evaluator`, whose reward is the score of a signal or blend.

    It scores the last step of the last trajectory: its `chat_completions`, which end with the completion. A step
    without them is scored by the task's instruction and the step's `model_response` or `output`.

    Args:
        client: the client, or the address of the service.
        model: the signal or blend to score by; the server's default if neither this nor `weights` is given.
        weights: the weight of each signal by name, instead of a model.
        correct_above: the score above which an episode counts as correct.
    """
    scorer = Scorer(open_client(client), ScoreOptions(model, weights))

    def assay(task: Any, episode: Any) -> Any:
        """Return the `EvalOutput` of an episode, with the logit of each signal.

        Raises:
            InvalidInput: the episode has no step, or its last step has no text.
            ItemFailed: the completion cannot be scored.
            AssayError: the request failed.
        """
        from rllm.eval.types import EvalOutput, Signal

        prompt, completion, finish_reason = read_episode(task, episode)
        score = score_single(scorer, build_rows([prompt], [completion], [finish_reason]))
        signals = [Signal(name=name, value=value) for name, value in read_parts(score).items()]
        return EvalOutput(reward=score.score, is_correct=score.score > correct_above, signals=signals)

    return assay


def read_episode(task: Any, episode: Any) -> tuple[Any, Any, FinishReason | None]:
    """Return the prompt, the completion and the finish reason of the last step of an episode.

    Raises:
        InvalidInput: the episode has no step, or its last step has no text, or there is no prompt.
    """
    steps = [step for trajectory in episode.trajectories for step in trajectory.steps]
    if not steps:
        raise InvalidInput("the episode has no step, so there is no completion")
    step = steps[-1]
    reason = getattr(step.model_output, "finish_reason", None)
    finish_reason = convert_finish_reason(reason)
    if step.chat_completions:
        return step.chat_completions[:-1], step.chat_completions[-1:], finish_reason
    text = step.model_response or step.output
    if not isinstance(text, str):
        raise InvalidInput("the last step has neither `chat_completions` nor a text")
    return read_instruction(task), text, finish_reason


def read_instruction(task: Any) -> Any:
    """Return the prompt of a task: its `instruction`, which is text, or the content parts of one message.

    Args:
        task: the task; or its metadata, which rLLM passes to a decorated evaluator.

    Raises:
        InvalidInput: the task has no instruction.
    """
    instruction = task.get("instruction") if isinstance(task, Mapping) else task.instruction
    if not instruction:
        raise InvalidInput(
            "the last step has no `chat_completions`, and the task's data have no `instruction`, so there is no prompt"
        )
    return instruction if isinstance(instruction, str) else [{"role": "user", "content": [*instruction]}]
