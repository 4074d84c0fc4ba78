"""Ask a chat endpoint that implements OpenAI's API, and keep its answers in a file.

Each answer is appended to a file of JSON lines as soon as it arrives. No question is asked, or paid for, twice, even
after an interruption. Questions that are refused or answered without a text are not kept, and are asked again by the
next run.
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
ANSWER_TOKENS = 256  # the choice is one word; the rest is room for a judge that reasons first
CONCURRENCY = 8
# Statuses that say "no valid key", "no such model" or, after all retries, "overloaded": other questions would fail too.
FATAL_STATUSES = frozenset({401, 404, 408, 409, 429})
Messages = Sequence[Mapping[str, str]]


class ChatError(ValueError):
    """The endpoint does not answer any question; the answers so far are kept."""


class QuestionRefused(ChatError):
    """The endpoint refuses one question, for instance because it is too long; it may answer others."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the endpoint, with its token counts.

    Attributes:
        text: text of the answer.
        prompt_tokens, completion_tokens: numbers of tokens as the endpoint counts them; `None` if it does not.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Chat:
    """A client of one model at one endpoint, safe to use from several threads at once.

    Args:
        url: base URL of the API, up to and including `/v1`.
        model: name of the model at the endpoint.
        cache: file of answers; it is created with the first answer.

    Raises:
        ChatError: the cache holds something else than answers.
    """

    def __init__(self, url: str, model: str, cache: Path) -> None:
        self._url, self._model, self._cache = url, model, cache
        self._known = _read_cache(cache)
        self._lock = threading.Lock()  # guards the cache and the count of server errors
        self._server_errors = 0  # consecutive ones, statuses from 500 on
        try:
            self._client = OpenAI(base_url=url, max_retries=RETRIES, timeout=TIMEOUT_S)
        except OpenAIError:  # no key in the environment; a local server does not need one
            self._client = OpenAI(base_url=url, max_retries=RETRIES, timeout=TIMEOUT_S, api_key="none")

    def is_known(self, messages: Messages) -> bool:
        """Return whether the answer to a question is already in the cache."""
        return self._compute_key(messages) in self._known

    def ask(self, messages: Messages) -> Answer:
        """Return the answer to a question at temperature 0, from the cache if it is there.

        Args:
            messages: chat messages with `role` and `content`.

        Raises:
            QuestionRefused: the endpoint does not answer this question.
            ChatError: the endpoint cannot be reached or does not answer any question, even after retries.
        """
        key = self._compute_key(messages)
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
            raise self._classify_error(error) from error
        except OpenAIError as error:
            raise ChatError(f"{self._url}: {error}") from error
        except ValueError as error:
            raise QuestionRefused(f"the endpoint's answer is not JSON: {error}") from error
        answer = _read_answer(completion)
        # Written before it is returned, so that an interruption cannot lose an answer that was paid for.
        with self._lock, self._cache.open("a") as stream:
            stream.write(json.dumps({"key": key} | asdict(answer)) + "\n")
            self._known[key] = answer
            self._server_errors = 0
        return answer

    def ask_all(self, questions: Sequence[Messages]) -> Iterator[tuple[int, Answer | QuestionRefused]]:
        """Yield each question's index with its answer, in the order of arrival; several are asked at once.

        The threads are daemons, so that an interruption does not wait for an endpoint that hangs.

        Args:
            questions: chat messages of each question.

        Raises:
            ChatError: the endpoint cannot be reached or does not answer any question, even after retries.
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
                if isinstance(answer, Exception) and not isinstance(answer, QuestionRefused):
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
            except Exception as error:  # `ask_all` raises it in the caller's thread
                done.put((number, error))

    def _classify_error(self, error: APIStatusError) -> ChatError:
        """Return whether an error status concerns one question or all of them.

        One server error may be the fault of one question; as many in a row as there are threads are the server's.
        """
        if error.status_code in FATAL_STATUSES:
            return ChatError(f"{self._url}: {error}")
        with self._lock:
            self._server_errors += error.status_code >= 500
            is_broken = self._server_errors >= CONCURRENCY
        return ChatError(f"{self._url}: {error}") if is_broken else QuestionRefused(str(error))

    def _compute_key(self, messages: Messages) -> str:
        # All that an answer depends on: another endpoint, model or limit must not find it.
        asked = [self._url, self._model, list(messages), ANSWER_TOKENS]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _read_answer(completion: object) -> Answer:
    """Return the text of a chat completion, and its token counts if the endpoint gives both.

    Raises:
        QuestionRefused: the object is not a chat completion, or has no text.
    """
    choices, usage = getattr(completion, "choices", None), getattr(completion, "usage", None)
    if not isinstance(choices, list) or not choices:
        raise QuestionRefused("the endpoint's answer is not a chat completion")
    text = getattr(getattr(choices[0], "message", None), "content", None)
    if not isinstance(text, str) or not text.strip():
        reason = getattr(choices[0], "finish_reason", None)
        raise QuestionRefused(f"the endpoint's answer has no text (finish_reason: {reason})")
    prompt, answer = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(text, *((prompt, answer) if _is_count(prompt) and _is_count(answer) else (None, None)))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_cache(cache: Path) -> dict[str, Answer]:
    known: dict[str, Answer] = {}
    lines = cache.read_text().splitlines(keepends=True) if cache.is_file() else []
    # An interruption may leave an unfinished last line. It is removed, and its question is asked again.
    if lines and not lines[-1].endswith("\n"):
        cache.write_text("".join(lines := lines[:-1]))
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            known[row["key"]] = Answer(row["text"], row["prompt_tokens"], row["completion_tokens"])
        except (ValueError, KeyError, TypeError) as error:
            raise ChatError(
                f"{cache}:{number}: not a kept answer of a judge; move the file away or choose another --out"
            ) from error
    return known
