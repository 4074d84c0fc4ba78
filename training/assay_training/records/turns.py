r"""HH's way of writing turns into one text: `\n\nHuman: … \n\nAssistant: …`."""

import re

from assay_service.scoring.item import Message

START = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns_in(text: str) -> tuple[str, tuple[Message, ...]]:
    """Return what stands before the first turn, and the turns."""
    first, *parts = _TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return first.strip(), tuple(Message(_ROLES[role], turn.strip()) for role, turn in turns)


def prompt_in(text: str) -> tuple[Message, ...] | None:
    r"""Return the turns before the reply, if a text is a dialogue as far as that; None for any other text.

    Sets such as full-hh-rlhf have it in a field of its own, `\n\nHuman: … \n\nAssistant:`.
    """
    first, turns = turns_in("\n\n" + text.strip())
    if first or len(turns) < 2 or turns[0].role != "user" or turns[-1] != Message("assistant", ""):
        return None
    return turns[:-1]
