"""Find the scores of items that were all scored before, without a thread, a queue or a task."""

import time
from collections.abc import Sequence

from assay_service.api.scorer import ItemScore, Scorer
from assay_service.api.sources import ItemSource
from assay_service.engine.cache import compute_key
from assay_service.errors import AssayError
from assay_service.scoring.item import Item, Truncation
from assay_service.scoring.trunk import Trunk
from assay_service.telemetry.timings import Timings


def recall_scores(
    scorer: Scorer, items: Sequence[ItemSource], signals: Sequence[str], timings: Timings, truncation: Truncation
) -> list[ItemScore | AssayError] | None:
    """Return what `Scorer.score` would return, or None if anything of it has to be rendered or computed.

    Args:
        scorer: the scorer, whose caches are read.
        items: items to score.
        signals: names of the signals that score them.
        timings: times of the request, to which the lookup is added.
        truncation: policy for prompts that are too long.
    """
    timings.rendering_s = time.monotonic()
    trunks = _identify(scorer, signals)
    if trunks is None:
        return None
    way = scorer.find_way(signals, truncation)
    keys: list[tuple[bytes, int]] = []
    known = []
    for item in items:
        kept = scorer.kept.get(way, item) if isinstance(item, Item) else None
        if kept is None:
            return None
        known.append(kept.renderings)
        for identity, _, name in trunks:
            sequence = kept.renderings[name].sequence
            if identity not in kept.keys:
                kept.keys[identity] = compute_key(identity, sequence)
            keys.append((kept.keys[identity], len(sequence.ids)))
    if not scorer.allows(sum(tokens for _, tokens in keys)):
        return None
    found = scorer.engine.recall(keys)
    if found is None:
        return None
    timings.submitted_s = time.monotonic()
    timings.sequences = timings.cached = len(keys)
    outputs = iter(found)  # in the order of `keys`: by item, then by trunk
    results: list[ItemScore | AssayError] = []
    for renderings in known:
        numbers = {n: of for _, trunk, _ in trunks for n, of in zip(trunk.signals, next(outputs), strict=True)}
        results.append(scorer.read(numbers, renderings))
    scorer.count(results)
    return results


def _identify(scorer: Scorer, signals: Sequence[str]) -> list[tuple[str, Trunk, str]] | None:
    """Return the identity of each trunk, the trunk, and one of its signals; None if one is not cached at all."""
    readers = {scorer.registry.trunks[name]: name for name in signals}
    identities = scorer.registry.identities
    if not all(trunk.name in identities for trunk in readers):
        return None
    return [(identities[trunk.name], trunk, name) for trunk, name in readers.items()]
