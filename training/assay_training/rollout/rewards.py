"""What completions are worth, from a running service; the only place that rewards come from."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from assay_client.client import RewardClient
from assay_client.errors import AssayError
from assay_client.types import Item, Provenance, Score, ScoreFailure
from assay_training.config.base import ConfigError
from assay_training.config.rollout import Reward
from assay_training.errors import RunStopped


class RewardError(RunStopped):
    """There is no reward to learn from: the service failed, or is another than it was."""


TRIES = 1_000  # the deadline decides
PATIENCE_S = 600.0  # a service that is started again compiles, loads and proves itself first
PROBE = Item(prompt="Hello?", completion="Hello.")
ROUNDS = 3  # in which items that may succeed later are asked again
PAUSE_S = 1.0  # before the first of them; each pause is twice the one before


def patient_client(url: str, reward: Reward) -> RewardClient:
    """A client that waits for a service that is started again while a run goes on, but not for one that is not there.

    Raises:
        ConfigError: the service does not have what the run asks for, or is not the one that it expects.
        AssayError: it could not be reached, or refused.
    """
    try:
        with RewardClient(url) as client:
            check_served(client, reward)
            served_by(client, reward)
    except AssayError as error:
        error.add_note(url)
        raise
    return RewardClient(url, deadline_s=PATIENCE_S, max_retries=TRIES)


def check_served(client: RewardClient, reward: Reward) -> None:
    """The service has what the run asks for.

    Raises:
        ConfigError: it has not.
        AssayError: the service could not be reached, or refused.
    """
    kinds = {card.id: card.kind for card in client.models()}
    for name in [reward.model] if reward.model is not None else list(reward.weights or {}):
        if name not in kinds:
            raise ConfigError(f"reward: {name!r} is not served; served are {', '.join(kinds)}")
        if reward.weights is not None and kinds[name] == "blend":
            raise ConfigError(f"reward: weights: {name!r} is a blend, weights are of signals")
        if reward.value == "probability" and kinds[name] != "absolute":
            raise ConfigError(f"reward: value: {name!r} is no absolute signal, it has no probability")


def served_by(client: RewardClient, reward: Reward) -> list[str]:
    """Return lines that tell by which models and weights the service scores, once it is what the run expects.

    The service is asked for one score, as only an answer names the fingerprint of a blend of the run's own.

    Raises:
        ConfigError: the service scores by something else than `reward.expect` names.
        AssayError: it could not be reached, or refused.
    """
    kinds = {card.id: card.kind for card in client.models()}
    found = client.score([PROBE], model=reward.model, weights=reward.weights).provenance
    wrong = list(_unexpected(reward, found, kinds))
    lines = [f"rewards: {_rule(reward, found)}; fingerprint {found.fingerprint}"]
    for name, signal in found.signals.items():
        adapter = "no adapter" if signal.adapter_sha256 is None else f"adapter {signal.adapter_sha256[:16]}"
        lines.append(f"  {name}: {kinds[name]}, model {signal.model}, revision {signal.revision[:16]}, {adapter}")
    if wrong:
        raise ConfigError(
            f"reward: the service is not the one that the run expects: {'; '.join(wrong)}. Start the service that the "
            "configuration was written for, name it with --url, or change reward.expect. It scores by\n"
            + "\n".join(lines)
        )
    return lines


def _rule(reward: Reward, found: Provenance) -> str:
    rule = found.blend
    weights = " + ".join(f"{weight:g} {name}" for name, weight in rule.weights.items()) if rule is not None else "?"
    how = f", standardised by {rule.standardise}" if rule is not None and rule.standardise != "none" else ""
    return f"{reward.model or 'weights of the run'} = {weights}{how}"


def _unexpected(reward: Reward, found: Provenance, kinds: Mapping[str, str]) -> Iterator[str]:
    """What differs from what the run expects."""
    fingerprint = reward.expect.fingerprint
    if fingerprint is not None and not found.fingerprint.startswith(fingerprint):
        yield f"fingerprint is {found.fingerprint[:16]}, not {fingerprint}"
    for name, expected in reward.expect.signals.items():
        signal = found.signals.get(name)
        if signal is None:
            yield f"{name} is no signal of this reward, which has {', '.join(found.signals)}"
            continue
        there = {"kind": kinds[name], **{key: getattr(signal, key) for key in ("model", "revision", "adapter_sha256")}}
        for key, wanted in expected.model_dump(exclude_none=True).items():
            whole = key in ("kind", "model")
            if there[key] != wanted if whole else not str(there[key]).startswith(wanted):
                yield f"{name}: {key} is {str(there[key]) if whole else str(there[key])[:16]}, not {wanted}"


@dataclass(frozen=True, slots=True)
class CompletionScore:
    """What a completion is worth.

    Attributes:
        value: the score, on the scale that the run asks for.
        signals: logits of the signals behind it.
    """

    value: float
    signals: dict[str, float]


class Rewards:
    """Scores by one signal, blend or weights.

    Args:
        client: of the service.
        reward: what is asked.
        fingerprint: of the models that scored earlier in the same run; None at its start.
        pause_s: before items that failed are asked again for the first time.

    Attributes:
        fingerprint: of the models that have scored.
    """

    def __init__(self, client: RewardClient, reward: Reward, fingerprint: str | None, pause_s: float = PAUSE_S) -> None:
        self._client, self._reward, self._pause_s = client, reward, pause_s
        self.fingerprint = fingerprint

    def score(self, items: Sequence[Item]) -> list[CompletionScore | str]:
        """In order; the code of its error where an item has no score, if the run leaves such items out.

        Items that failed and may succeed later are asked again first.

        Raises:
            RewardError: an item has no score and the run is to stop then; or another model answered than before.
            AssayError: the service could not be reached, or refused.
        """
        rows = self._answers(items)
        for before in range(ROUNDS):
            again = [i for i, row in enumerate(rows) if isinstance(row, ScoreFailure) and row.error.retryable]
            if not again:
                break
            time.sleep(self._pause_s * 2**before)
            for i, row in zip(again, self._answers([items[i] for i in again]), strict=True):
                rows[i] = row
        failed = next((row for row in rows if isinstance(row, ScoreFailure)), None)
        if failed is not None and self._reward.failed == "stop":
            raise RewardError(
                f"no score for a completion: {failed.error.code}: {failed.error.message} "
                "(with reward.failed: drop it is left out and counted)"
            )
        return [self._worth(row) for row in rows]

    def _answers(self, items: Sequence[Item]) -> list[Score | ScoreFailure]:
        """What the service says now, if it still is the one that it was."""
        result = self._client.score(items, model=self._reward.model, weights=self._reward.weights)
        if self.fingerprint not in (None, result.fingerprint):
            now, before = result.fingerprint[:12], str(self.fingerprint)[:12]
            raise RewardError(
                f"the service scores by {now} now, and did by {before}: start it with the models and the blend that it "
                "had, or begin another run"
            )
        self.fingerprint = result.fingerprint
        return list(result.data)

    def _worth(self, row: Score | ScoreFailure) -> CompletionScore | str:
        if isinstance(row, ScoreFailure):
            return row.error.code
        signals = {name: value.logit for name, value in row.signals.items()}
        if self._reward.value == "logit":
            return CompletionScore(row.score, signals)
        probability = next(iter(row.signals.values())).prob if len(row.signals) == 1 else None
        if probability is None:
            raise RewardError(
                f"reward: value: {self._reward.model!r} is no single absolute signal, it has no probability"
            )
        return CompletionScore(probability, signals)
