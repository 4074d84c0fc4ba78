"""A chat endpoint that speaks OpenAI's protocol, and what it has answered already.

Answers are appended to a file of JSON lines as they come, so that nothing is asked, or paid, twice: not after an
interruption either.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from openai import OpenAI, OpenAIError

RETRIES = 5
TIMEOUT_S = 120
ANSWER_TOKENS = 256
Messages = Sequence[Mapping[str, str]]


class ChatError(ValueError):
    """The endpoint did not answer; what it had answered before is kept."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and what it took.

    Attributes:
        text: of the answer.
        prompt_tokens, completion_tokens: as the endpoint counts them.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


class Chat:
    """One model behind one endpoint. May be used from several threads at once.

    Args:
        url: of the API, up to `/v1`.
        model: as the endpoint knows it.
        cache: file of answers; is created if need be.

    Raises:
        ChatError: the cache holds something else.
    """

    def __init__(self, url: str, model: str, cache: Path) -> None:
        self._url, self._model, self._cache = url, model, cache
        self._known = _read(cache)
        self._lock = threading.Lock()
        try:
            self._client = OpenAI(base_url=url, max_retries=RETRIES, timeout=TIMEOUT_S)
        except OpenAIError:  # no key in the environment; a server of one's own asks for none
            self._client = OpenAI(base_url=url, max_retries=RETRIES, timeout=TIMEOUT_S, api_key="none")

    def known(self, messages: Messages) -> bool:
        """Whether the answer is there already."""
        return self._key(messages) in self._known

    def ask(self, messages: Messages) -> Answer:
        """The answer, at temperature 0; from the file if it is there.

        Raises:
            ChatError: the endpoint refused, or was not there, also after retries.
        """
        key = self._key(messages)
        if key in self._known:
            return self._known[key]
        try:
            completion = self._client.chat.completions.create(
                model=self._model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                max_completion_tokens=ANSWER_TOKENS,
            )
        except (OpenAIError, ValueError) as error:  # no answer, or one that is no JSON
            raise ChatError(f"{self._url}: {error}") from error
        answer = _answer(completion)
        if answer is None:
            raise ChatError(f"{self._url}: answered with something else than a chat completion with its usage")
        with self._lock, self._cache.open("a") as stream:
            stream.write(json.dumps({"key": key} | asdict(answer)) + "\n")
            self._known[key] = answer
        return answer

    def _key(self, messages: Messages) -> str:
        asked = [self._url, self._model, list(messages), ANSWER_TOKENS]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _answer(completion: object) -> Answer | None:
    """The answer, if everything in it is of the kind that the protocol says."""
    choices, usage = getattr(completion, "choices", None), getattr(completion, "usage", None)
    text = (
        getattr(getattr(choices[0], "message", None), "content", None)
        if isinstance(choices, list) and choices
        else None
    )
    asked, said = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(text, str) or not isinstance(asked, int) or not isinstance(said, int):
        return None
    return Answer(text, asked, said)


def _read(cache: Path) -> dict[str, Answer]:
    known: dict[str, Answer] = {}
    lines = cache.read_text().splitlines(keepends=True) if cache.is_file() else []
    if lines and not lines[-1].endswith("\n"):  # an interruption left half a line, or took its end; it is asked again
        cache.write_text("".join(lines := lines[:-1]))
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            known[row["key"]] = Answer(row["text"], row["prompt_tokens"], row["completion_tokens"])
        except (ValueError, KeyError, TypeError) as error:
            raise ChatError(f"{cache}:{number}: not an answer of a judge") from error
    return known
