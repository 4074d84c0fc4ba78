"""Find where an unfinished completion ends in a rendered text, and whether its place is certain. No side effects."""

import re

# Words and tags that a template prints before a completion, such as `<think>`.
_WORD = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|[^\s<>\[\]]+")


def extract_completion(full: str, head: str, tail: str, completion: str) -> str | None:
    """Return the text between `head` and `tail`; None unless it is the completion, stripped or not."""
    printed = full[len(head) : len(full) - len(tail)]
    return printed if full == head + printed + tail and printed.strip() == completion.strip() else None


def find_words_between(prompt: str, head: str) -> tuple[str, ...]:
    """Return the different words that `head` has after `prompt`, with which it starts."""
    return tuple(dict.fromkeys(_WORD.findall(head[len(prompt) :])))


def is_certain(lead: tuple[str, ...] | None, prompt: str, head: str, completion: str) -> bool:
    """Return whether the place of an unfinished completion is certain.

    It is if the completion stands behind `lead` however it continues, and does not begin with a part of `lead` itself.

    Args:
        lead: words that the template always prints between the generation prompt and completions, or None.
        prompt: conversation with the generation prompt.
        head: text that the template printed before this completion; other messages may change it.
        completion: text of the completion so far.
    """
    prompt, start = prompt.rstrip(), completion.strip()
    if lead is None or not head.startswith(prompt) or find_words_between(prompt, head) != lead:
        return False
    # Tags can be distinguished as wholes; of other words (`◁think▷`, `# Thinking`) the first character must differ.
    openings = [word if word[0] in "<[" else word[0] for word in (*lead[:1], *(w for w in lead[1:] if w[0] in "<["))]
    return not any(start.startswith(word) or (start and word.startswith(start)) for word in openings)
