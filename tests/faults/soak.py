"""Ask a service for a long time, never twice for the same text, and measure how its memory grows.

    python -m tests.faults.soak SECONDS OUT

Every item is scored by `/v1/score`, and then ranked with its neighbors: both numbers must be equal, bit for bit. A few
items that were scored at the start are scored again all the time. One request in eight is refused on purpose, since
refusals must not keep memory either.
"""

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from assay_client.client import RewardClient
from assay_client.errors import ServerError
from tests.faults.memory import MIB, fit_growth
from tests.faults.service import Service, make_config, serve

CLIENTS = 2
ITEMS = 8  # of a request
SAMPLE_S = 0.5
QUESTION = ["how", "do", "I", "bake", "bread", "and", "wait"]
ANSWER = ["flour", "water", "salt", "yeast", "and", "wait", "0", "1", "2", "3"]
# Full within the warm-up of two minutes, so that the rest shows whether anything else grows.
LIMITS = {"cache_bytes": 200_000}


@dataclass
class Soak:
    """What a soak has found.

    Attributes:
        asked: items that were asked for.
        lost: items without a score.
        wrong: items whose second score differed from their first one.
        refused: requests that were refused on purpose.
        samples: seconds since the start, and resident bytes.
    """

    asked: int = 0
    lost: int = 0
    wrong: int = 0
    refused: int = 0
    samples: list[tuple[float, int]] = field(default_factory=list)

    def describe(self) -> dict[str, float]:
        numbers = {name: value for name, value in asdict(self).items() if name != "samples"}
        sizes = [size / MIB for _, size in self.samples]
        ends = {"first_mib": round(sizes[0], 1), "last_mib": round(sizes[-1], 1), "most_mib": round(max(sizes), 1)}
        return {"seconds": round(self.samples[-1][0]), **numbers, **ends, "mib_per_minute": fit_growth(self.samples)}


def make_items(seed: int) -> Iterator[list[tuple[str, str]]]:
    """Yield requests whose texts never repeat; their lengths vary."""
    draw = random.Random(seed)
    number = 0
    while True:
        prompt = f"{seed}-{number}: " + " ".join(draw.choices(QUESTION, k=8))
        words = [draw.choices(ANSWER, k=draw.randint(1, 30)) for _ in "8" * 8]
        yield [(prompt, f"{place} " + " ".join(some)) for place, some in enumerate(words)]
        number += 1


def run_soak(service: Service, seconds: float) -> Soak:
    """Ask `service` for `seconds`, and return what was found."""
    soak, lock, end_s = Soak(), threading.Lock(), time.monotonic() + seconds

    def ask(seed: int) -> None:
        with RewardClient(service.url) as client:
            control = [(f"control {seed}", f"answer {n}") for n in range(4)]
            expected = client.score(control).scores()
            for number, items in enumerate(make_items(seed)):
                if time.monotonic() > end_s:
                    return
                scored = client.score(items).data
                ranking = client.rank(items[0][0], [completion for _, completion in items])
                ranked = {row.index: row.score for row in ranking.results}
                again = client.score(control).scores()
                with lock:
                    soak.asked += len(items)
                    soak.lost += sum(not hasattr(one, "score") for one in scored)
                    soak.wrong += sum(getattr(one, "score", None) != ranked.get(n) for n, one in enumerate(scored))
                    soak.wrong += sum(a != b for a, b in zip(expected, again, strict=True))
                if number % 8 == 0:
                    try:
                        client.score(items, model=f"none-{number}")
                    except ServerError:
                        soak.refused += 1

    start_s = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, seed) for seed in range(CLIENTS)]
        while time.monotonic() < end_s:
            soak.samples.append((time.monotonic() - start_s, service.rss_bytes))
            time.sleep(SAMPLE_S)
        for future in asking:
            future.result()
    return soak


def main(seconds: str, out: str) -> None:
    """Run a soak and write its numbers, with a sample of the memory for each hundredth of the time."""
    with tempfile.TemporaryDirectory() as root, serve([make_config(Path(root), LIMITS)]) as (service,):
        soak = run_soak(service, float(seconds))
    thinned = soak.samples[:: max(len(soak.samples) // 100, 1)]
    curve = [[round(t), round(size / MIB, 2)] for t, size in thinned]
    Path(out).write_text(json.dumps({**soak.describe(), "memory_mib": curve}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
