"""Give the answer of one scoring call to several functions, across threads and event loops.

Trainers with several objectives ask one reward function for each signal. All of them ask about the same rows, which
are scored once: by the function that asks first. The others wait for its answer, or are given it later in its step.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# The most answers that are kept for functions that have not asked yet: more than trainers have groups in flight.
MAX_KEPT = 256

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    """The answer to one question, which may be on its way, and the names of those who have asked."""

    step: Hashable | None
    answer: Future[T] = field(default_factory=Future)
    readers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        # A future that runs cannot be cancelled: a reader that gives up must not take the answer from the others.
        self.answer.set_running_or_notify_cancel()


class _State(Generic[T]):
    """The answers of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[Hashable, _Entry[T]] = {}


class _Abandoned(Exception):
    """A sign that the reader that asked was cancelled, so that another one has to ask."""


class SharedAnswers(Generic[T]):
    """The answers that `readers` functions share; each function is given each answer once.

    An answer is dropped when the last function has asked for it, or when another step begins. It is also dropped when
    it is the oldest of more than `MAX_KEPT`. Without a step it is dropped as soon as it is there: only functions that
    ask meanwhile share it. Otherwise nothing would tell the answer of a step that was aborted from one of the next
    step.

    A function that asks the same question again starts a new call. Errors are given to all functions that wait, and are
    not kept.

    It can be pickled and used after a fork; the copy has no answers.

    Args:
        readers: the number of functions.
    """

    def __init__(self, readers: int) -> None:
        self._readers = readers
        # By process: a fork copies answers that are on their way in threads which it does not copy.
        self._by_pid: dict[int, _State[T]] = {}

    def __reduce__(self) -> tuple[type["SharedAnswers[T]"], tuple[int]]:
        return type(self), (self._readers,)

    def get(self, reader: str, question: Hashable, ask: Callable[[], T], step: Hashable | None = None) -> T:
        """Return the answer to a question.

        Args:
            reader: the name of the function that asks.
            question: the value that identifies the answer: equal questions have one answer.
            ask: the function that gets the answer, called by the first reader only.
            step: the value that identifies the trainer's step, if it is known; answers of another step are dropped.
                Without it no answer is kept.

        Raises:
            Exception: what `ask` raises.
        """
        while True:
            entry, first = self._join(reader, question, step)
            try:
                if first:
                    self._finish(question, entry, ask())
                return entry.answer.result()
            except _Abandoned:
                continue
            except BaseException as error:
                self._fail(question, entry, error, first)
                raise

    async def get_async(
        self, reader: str, question: Hashable, ask: Callable[[], Awaitable[T]], step: Hashable | None = None
    ) -> T:
        """Return the answer to a question; see `get`. A reader that is cancelled does not affect the others.

        Raises:
            Exception: what `ask` raises.
        """
        while True:
            entry, first = self._join(reader, question, step)
            try:
                if first:
                    self._finish(question, entry, await ask())
                return await asyncio.wrap_future(entry.answer)
            except _Abandoned:
                continue
            except BaseException as error:
                self._fail(question, entry, error, first)
                raise

    def _join(self, reader: str, question: Hashable, step: Hashable | None) -> tuple[_Entry[T], bool]:
        """Return the entry of a question, and whether this reader is the first, which must ask."""
        state = self._by_pid.setdefault(os.getpid(), _State())
        key = (step, question)
        with state.lock:
            entries = state.entries
            if step is not None:
                for old in [known for known, entry in entries.items() if entry.step != step]:
                    del entries[old]
            entry = entries.get(key)
            first = entry is None or reader in entry.readers
            if entry is None or first:
                entries.pop(key, None)  # so that the new one is the youngest
                entry = entries[key] = _Entry(step)
            entry.readers.add(reader)
            if len(entry.readers) >= self._readers:
                del entries[key]
            elif len(entries) > MAX_KEPT:
                del entries[next(iter(entries))]
            return entry, first

    def _finish(self, question: Hashable, entry: _Entry[T], answer: T) -> None:
        """Give an answer to the readers that wait, and keep it for the others only within a step."""
        if entry.step is None:
            self._drop(question, entry)
        entry.answer.set_result(answer)

    def _drop(self, question: Hashable, entry: _Entry[T]) -> None:
        state = self._by_pid[os.getpid()]
        with state.lock:
            if state.entries.get((entry.step, question)) is entry:
                del state.entries[entry.step, question]

    def _fail(self, question: Hashable, entry: _Entry[T], error: BaseException, first: bool) -> None:
        """Drop an entry whose first reader has failed, and tell the readers that wait."""
        if not first or entry.answer.done():
            return
        self._drop(question, entry)
        # Cancellation concerns one reader; anything else would happen to the others as well.
        entry.answer.set_exception(error if isinstance(error, Exception) else _Abandoned())
