"""Order the entries that wait: whole requests one after the other, and fair shares between callers.

The rule, which docs/overload.md explains:

- Callers get the same number of tokens while they wait.
- Requests of one caller that fit into one turn are served in the order of their arrival. Longer ones are cut into
  turns and wait in a second line. While both lines wait, they get the same number of tokens.
- A turn that has begun is finished before another begins.

Nothing here knows a clock, a thread or a model.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

EntryT = TypeVar("EntryT", bound=Hashable)


@dataclass(eq=False, slots=True)
class _Turn(Generic[EntryT]):
    """The entries of a request, or of a part of it, that are served together; those that wait, with their tokens."""

    line: "_Line[EntryT]"
    waiting: dict[EntryT, int]


@dataclass(eq=False, slots=True)
class _Line(Generic[EntryT]):
    """Turns in the order of their arrival; `served` counts the tokens of those that have begun."""

    caller: "_Caller[EntryT]"
    turns: dict[_Turn[EntryT], None] = field(default_factory=dict)
    tokens: int = 0
    served: int = 0


@dataclass(eq=False, slots=True)
class _Caller(Generic[EntryT]):
    """The lines of one caller, of short and of long requests; `served` counts the tokens of turns that have begun."""

    lines: dict[bool, _Line[EntryT]] = field(default_factory=dict)  # by `is_long`
    served: int = 0

    @property
    def tokens(self) -> int:
        return sum(line.tokens for line in self.lines.values())


class FairQueue(Generic[EntryT]):
    """Entries that wait, each with its number of tokens.

    Attributes:
        tokens: number of tokens that wait.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._callers: dict[str, _Caller[EntryT]] = {}
        # An entry that two requests wait for has a turn in each; it leaves both when it is served.
        self._turns: dict[EntryT, list[_Turn[EntryT]]] = {}
        self._costs: dict[EntryT, int] = {}
        self._begun: dict[_Turn[EntryT], None] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, entry: object) -> bool:
        return entry in self._turns

    def add(self, caller: str, turns: Sequence[Sequence[tuple[EntryT, int]]]) -> None:
        """Add a request.

        Args:
            caller: name of the caller, who shares the engine with the others.
            turns: entries of each turn with their tokens, above 0. An entry may wait already, for another request.
        """
        line = self._find_line(caller, is_long=len(turns) > 1)
        for entries in turns:
            turn = _Turn(line, dict(entries))
            line.turns[turn] = None
            line.tokens += sum(turn.waiting.values())
            for entry, tokens in turn.waiting.items():
                if entry not in self._turns:
                    self._costs[entry] = tokens
                    self.tokens += tokens
                self._turns.setdefault(entry, []).append(turn)

    def list_next(self, least_tokens: int) -> list[EntryT]:
        """Return the entries that are served next, in their order, with at least so many tokens if as many wait."""
        listed: dict[EntryT, None] = {}
        tokens = 0
        for turn in self._yield_turns():
            for entry in turn.waiting:
                if entry not in listed:
                    tokens += self._costs[entry]
                    listed[entry] = None
            if tokens >= least_tokens:
                break
        return list(listed)

    def take(self, entries: Sequence[EntryT]) -> int:
        """Remove entries that are served now, and return the number of their tokens."""
        for entry in entries:
            turns = self._turns[entry]
            if not any(turn in self._begun for turn in turns):
                # The short request of those that wait for it is the reason why it is served now.
                turn = min(turns, key=lambda turn: turn.line is turn.line.caller.lines.get(True))
                tokens = sum(turn.waiting.values())
                turn.line.served += tokens
                turn.line.caller.served += tokens
                self._begun[turn] = None
        return self.drop(entries)

    def drop(self, entries: Sequence[EntryT]) -> int:
        """Remove entries that nobody waits for any more, and return the number of their tokens."""
        dropped = 0
        for entry in entries:
            dropped += self._costs.pop(entry)
            for turn in self._turns.pop(entry):
                turn.line.tokens -= turn.waiting.pop(entry)
                if not turn.waiting:
                    del turn.line.turns[turn]
                    self._begun.pop(turn, None)
        self.tokens -= dropped
        return dropped

    def count_ahead(self, caller: str, tokens: int, *, is_long: bool) -> int:
        """Return the number of tokens that are served before a new request is finished, without its own.

        Args:
            caller: name of the caller.
            tokens: number of tokens of the request.
            is_long: True if the request has more than one turn.
        """
        known = self._callers.get(caller)
        lines = {} if known is None else {long: line.tokens for long, line in known.lines.items()}
        own = lines.get(is_long, 0) + tokens
        # The other line, and every other caller, get as many tokens meanwhile, if they have as many.
        reach = own + min(lines.get(not is_long, 0), own)
        others = sum(min(other.tokens, reach) for name, other in self._callers.items() if name != caller)
        return reach + others - tokens

    def clear(self) -> None:
        """Remove all entries."""
        self.drop(list(self._turns))

    def _find_line(self, caller: str, *, is_long: bool) -> _Line[EntryT]:
        """Return the line of a new request; one that was empty does not catch up on what it did not ask for."""
        if not self._turns:
            self._callers.clear()
        busy = [known.served for known in self._callers.values() if known.tokens]
        floor = min(busy, default=0)
        self._callers = {name: known for name, known in self._callers.items() if known.tokens or known.served > floor}
        found = self._callers.setdefault(caller, _Caller())
        if not found.tokens:
            found.served = max(found.served, floor)
            found.lines.clear()
        line = found.lines.setdefault(is_long, _Line(found))
        if not line.tokens:
            line.served = max([line.served, *(other.served for other in found.lines.values() if other.tokens)])
        return line

    def _yield_turns(self) -> Iterator[_Turn[EntryT]]:
        """Yield the turns in the order in which they are served: those that have begun, then fair shares."""
        yield from self._begun
        lines = [line for caller in self._callers.values() for line in caller.lines.values()]
        served = {line: line.served for line in lines}
        by_caller = {line.caller: line.caller.served for line in lines}
        rest = {line: (turn for turn in line.turns if turn not in self._begun) for line in lines}
        heads = {line: turn for line in lines if (turn := next(rest[line], None)) is not None}
        while heads:
            line = min(heads, key=lambda line: (by_caller[line.caller], served[line]))
            turn = heads[line]
            yield turn
            tokens = sum(turn.waiting.values())
            served[line] += tokens
            by_caller[line.caller] += tokens
            if (following := next(rest[line], None)) is None:
                del heads[line]
            else:
                heads[line] = following
