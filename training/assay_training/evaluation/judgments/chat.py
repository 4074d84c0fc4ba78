"""A chat endpoint that speaks OpenAI's protocol, and what it has answered already.

Answers are appended to a file of JSON lines as they come, so that nothing is asked, or paid, twice: not after an
interruption either. What is refused, or answered without a text, is not kept, and asked again the next time.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from openai import APIStatusError, OpenAI, OpenAIError

RETRIES = 5
TIMEOUT_S = 120
ANSWER_TOKENS = 256
CONCURRENCY = 8
# No key, no such model, or no room after all retries: other questions would fare no better.
NEVER = frozenset({401, 404, 408, 409, 429})
Messages = Sequence[Mapping[str, str]]


class ChatError(ValueError):
    """The endpoint does not answer; what it had answered before is kept."""


class Refused(ChatError):
    """It does not answer this question, as its text is too long or not wanted; it may answer others."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and what it took.

    Attributes:
        text: of the answer.
        prompt_tokens, completion_tokens: as the endpoint counts them; None where it does not.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


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
        self._broken = 0  # how many questions in a row ended in an error of the server's own
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
            Refused: there is none to this question.
            ChatError: the endpoint was not there, or answers nobody, also after retries.
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
        except APIStatusError as error:
            raise self._refusal(error) from error
        except OpenAIError as error:
            raise ChatError(f"{self._url}: {error}") from error
        except ValueError as error:
            raise Refused(f"answered with what is no JSON: {error}") from error
        answer = _answer(completion)
        with self._lock, self._cache.open("a") as stream:
            stream.write(json.dumps({"key": key} | asdict(answer)) + "\n")
            self._known[key] = answer
            self._broken = 0
        return answer

    def ask_all(self, questions: Sequence[Messages]) -> Iterator[tuple[int, Answer | Refused]]:
        """Each question's number with its answer, as they come; several are asked at once.

        The threads end with the process, so that an interruption does not wait for an endpoint that hangs.

        Raises:
            ChatError: as for `ask`.
        """
        todo: SimpleQueue[tuple[int, Messages]] = SimpleQueue()
        done: SimpleQueue[tuple[int, Answer | Exception]] = SimpleQueue()
        stop = threading.Event()
        for question in enumerate(questions):
            todo.put(question)
        for _ in range(min(CONCURRENCY, len(questions))):
            threading.Thread(target=self._work, args=(todo, done, stop), daemon=True).start()
        try:
            for _ in questions:
                number, answer = done.get()
                if isinstance(answer, Exception) and not isinstance(answer, Refused):
                    raise answer
                yield number, answer
        finally:
            stop.set()

    def _work(
        self,
        todo: SimpleQueue[tuple[int, Messages]],
        done: SimpleQueue[tuple[int, Answer | Exception]],
        stop: threading.Event,
    ) -> None:
        while not stop.is_set():
            try:
                number, messages = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((number, self.ask(messages)))
            except Exception as error:  # raised where the answer is waited for
                done.put((number, error))

    def _refusal(self, error: APIStatusError) -> ChatError:
        """What a status means: of this question, or of all; so do errors of the server's own, many in a row."""
        if error.status_code in NEVER:
            return ChatError(f"{self._url}: {error}")
        with self._lock:
            self._broken += error.status_code >= 500
            broken = self._broken >= CONCURRENCY
        return ChatError(f"{self._url}: {error}") if broken else Refused(str(error))

    def _key(self, messages: Messages) -> str:
        asked = [self._url, self._model, list(messages), ANSWER_TOKENS]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _answer(completion: object) -> Answer:
    """The answer, if its text is there; its tokens, if they are counted.

    Raises:
        Refused: no chat completion, or one without a text.
    """
    choices, usage = getattr(completion, "choices", None), getattr(completion, "usage", None)
    if not isinstance(choices, list) or not choices:
        raise Refused("answered with something else than a chat completion")
    text = getattr(getattr(choices[0], "message", None), "content", None)
    if not isinstance(text, str) or not text.strip():
        raise Refused(f"answered without a text (finish_reason: {getattr(choices[0], 'finish_reason', None)})")
    asked, said = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(text, *((asked, said) if _count(asked) and _count(said) else (None, None)))


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
