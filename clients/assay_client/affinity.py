"""Decide which of several endpoints a prompt belongs to, so that its computation is shared and cached there."""

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import cast

from assay_client.errors import InvalidInput
from assay_client.messages import Prompt, encode_prompt

KEY_BYTES = 16  # two of a billion prompts have the same key with probability 1e-21


def affinity_key(prompt: Prompt | Sequence[int]) -> str:
    """Return a stable key of a prompt: 32 hexadecimal digits, the same in every process and version.

    A text has the key of one user message with that text; token ids have another key than their text. The client sends
    it as `X-Assay-Affinity`, so that a gateway can route by it.

    Args:
        prompt: text, messages as `Message`s or in wire form, or token ids.

    Raises:
        InvalidInput: the prompt is none of these, or a message has a value without a JSON form.
    """
    messages = _encode(prompt)
    try:
        # Sorted, because the order of keys has no meaning; escaped to ASCII, so that lone surrogates have a form, too.
        text = json.dumps(messages, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the prompt has no JSON form: {error}") from error
    return blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest()


def _encode(prompt: Prompt | Sequence[int]) -> object:
    others = isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence)
    if not others and prompt and all(isinstance(token, int) for token in prompt):
        return [*prompt]
    encoded = encode_prompt(cast("Prompt", prompt))
    return [{"role": "user", "content": encoded}] if isinstance(encoded, str) else encoded


def rank_endpoints(key: str, endpoints: Iterable[str]) -> list[str]:
    """Return the endpoints in the order in which a key prefers them, by rendezvous hashing.

    The order of two endpoints does not depend on the others. So only the keys of an endpoint move when it is removed,
    and they spread evenly over the rest.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    return sorted(endpoints, key=lambda endpoint: blake2b(f"{key} {endpoint}".encode(), digest_size=8).digest())
