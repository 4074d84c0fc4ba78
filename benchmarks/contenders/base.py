"""Define a contender: it loads a model, and scores groups of texts."""

import socket
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.workloads import Group, Workload


def find_free_port() -> int:
    """Find a port of loopback on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Contender(ABC):
    """A way of scoring conversations; everything from the text on is timed.

    Args:
        model: directory of a checkpoint.
    """

    def __init__(self, model: Path) -> None:
        self.model = model

    served = False  # whether it is asked over HTTP

    def prepare(self, groups: list[Group]) -> None:  # noqa: B027 - most have nothing to do
        """Prepare a round, before the clock starts."""

    @abstractmethod
    def score(self, groups: list[Group]) -> list[float]:
        """Return the logits of all completions, group by group, in one call."""

    def close(self) -> None:  # noqa: B027 - likewise
        """End the processes that were started."""

    def run(self, workload: Workload, groups: list[Group]) -> list[float]:
        """Score as the workload asks: in one call, one after the other, or from many clients at once."""
        if not workload.clients and not workload.calls:
            return self.score(groups)
        single = [Group(group.prompt, (completion,)) for group in groups for completion in group.completions]
        with ThreadPoolExecutor(workload.clients or 1) as clients:
            return [logits[0] for logits in clients.map(lambda group: self.score([group]), single)]
