r"""Parse dialogues that are written into one text, as in [HH]: `\n\nHuman: … \n\nAssistant: …`."""

import re

from assay_service.scoring.item import Message

START = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def split_turns(text: str) -> tuple[str, tuple[Message, ...]]:
    """Return the text before the first turn, and the turns as messages; both are stripped of white space."""
    first, *parts = _TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return first.strip(), tuple(Message(_ROLES[role], turn.strip()) for role, turn in turns)


def parse_prompt(text: str) -> tuple[Message, ...] | None:
    r"""Return the messages of a prompt that is written as turns, or None for any other text.

    Such a prompt begins with a human turn and ends with an empty turn of the assistant, which the completion fills:
    `\n\nHuman: … \n\nAssistant:`. Data sets such as full-hh-rlhf have it in a field of its own.
    """
    first, turns = split_turns("\n\n" + text.strip())
    if first or len(turns) < 2 or turns[0].role != "user" or turns[-1] != Message("assistant", ""):
        return None
    return turns[:-1]
