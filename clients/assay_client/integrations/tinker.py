"""Give Tinker's cookbook a preference model that compares over HTTP.

Source: https://github.com/thinking-machines-lab/tinker-cookbook, `preference/types.py` (0.6.1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from assay_client.client import AsyncRewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._single import open_async_client
from assay_client.messages import read_completion_text


class AssayPreferenceModel:
    """A `PreferenceModel`: compares two completions of one conversation by a preference signal.

    Args:
        client: the client, or the address of the service.
        model: the name of the preference signal; a blend has no probability.
    """

    def __init__(self, client: AsyncRewardClient | str, model: str) -> None:
        self._client = open_async_client(client)
        self._model = model

    async def __call__(self, comparison: Any) -> float:
        """Return `1 - 2 * P(A)`: -1 if A is certainly preferred, 0 for a tie, 1 if B is.

        Args:
            comparison: `prompt_conversation`, `completion_A` and `completion_B`, each a list of messages.

        Raises:
            InvalidInput: a completion is not one message with a text, or has reasoning beside it; or the model is not a
                preference signal.
            AssayError: the request failed, or a completion cannot be scored.
        """
        a, b = (read_text(side) for side in (comparison.completion_A, comparison.completion_B))
        compared = await self._client.compare(comparison.prompt_conversation, a, b, model=self._model)
        signal = compared.signals.get(self._model)
        if signal is None or signal.prob_a is None:
            raise InvalidInput(
                f"`{self._model}` is not a preference signal, so it has no probability that A is preferred"
            )
        return 1 - 2 * signal.prob_a


def read_text(completion: Any) -> str:
    """Return the text of a completion, whose content is text or a list of the parts that renderers make.

    Raises:
        InvalidInput: a part is not text, for example reasoning, or the completion is not one message.
    """
    if isinstance(completion, Sequence) and len(completion) == 1 and isinstance(completion[0], Mapping):
        message = completion[0]
        if isinstance(message.get("content"), list):
            return read_completion_text([{**message, "content": "".join(map(_read_part, message["content"]))}])
    return read_completion_text(completion)


def _read_part(part: Any) -> str:
    if part.get("type") != "text":
        raise InvalidInput(
            f"a completion has a part of type {part.get('type')!r}, and only text is compared; with "
            "`content_preprocessor=lambda text: text` the cookbook passes the text alone"
        )
    text: str = part["text"]
    return text
