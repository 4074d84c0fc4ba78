"""Get the scores of completions from a running service, and check that it is the one that the run expects."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from assay_client.client import RewardClient
from assay_client.errors import AssayError
from assay_client.provenance import Provenance
from assay_client.types import Item, Score, ScoreFailure
from assay_training.config.base import ConfigError
from assay_training.config.rollout import Reward, format_weights
from assay_training.errors import RunStopped


class RewardError(RunStopped):
    """The error of a run without rewards to learn from: the service failed, or its models have changed."""


TRIES = 1_000  # so many that the deadline ends the retries
PATIENCE_S = 600.0  # a restarted service compiles kernels, loads models and tests itself before it answers
PROBE = Item(prompt="Hello?", completion="Hello.")
ROUNDS = 3  # retries of items with a retryable error
PAUSE_S = 1.0  # pause before the first retry; each pause is twice the previous one


def open_patient_client(url: str, reward: Reward, api_key: str | None = None) -> RewardClient:
    """Return a client that waits up to ten minutes for a service that restarts during the run.

    Before that it checks the service with a client that does not wait, so that a wrong address fails at once.

    Args:
        url: address of the service.
        reward: reward of the run's configuration.
        api_key: key that is sent to the service; None sends none.

    Raises:
        ConfigError: the service does not have the models that the run needs, or is not the one that it expects.
        AssayError: the service could not be reached, or refused a request.
    """
    try:
        with RewardClient(url, api_key=api_key) as client:
            check_reward_served(client, reward)
            identify_service(client, reward)
    except AssayError as error:
        error.add_note(url)
        raise
    return RewardClient(url, api_key=api_key, deadline_s=PATIENCE_S, max_retries=TRIES)


def check_reward_served(client: RewardClient, reward: Reward) -> None:
    """Check that the service has the signals or the blend of the run's reward.

    Raises:
        ConfigError: a name is not served, or is of the wrong kind for the reward.
        AssayError: the service could not be reached, or refused a request.
    """
    kinds = {card.id: card.kind for card in client.models()}
    for name in [reward.model] if reward.model is not None else list(reward.weights or {}):
        if name not in kinds:
            raise ConfigError(f"reward: {name!r} is not served; the service has {', '.join(kinds)}")
        if reward.weights is not None and kinds[name] == "blend":
            raise ConfigError(f"reward: weights: {name!r} is a blend; give weights to signals only")
        if reward.value == "probability" and kinds[name] != "absolute":
            raise ConfigError(f"reward: value: {name!r} is not an absolute signal, so it has no probability; use logit")


def identify_service(client: RewardClient, reward: Reward) -> list[str]:
    """Check that the service scores by what `reward.expect` names, and return lines that describe it.

    The lines name weights, fingerprint and models. This asks for one score, because only the answer to a request has
    the fingerprint of a blend with the run's own weights.

    Raises:
        ConfigError: the service scores by something else than `reward.expect` names.
        AssayError: the service could not be reached, or refused a request.
    """
    kinds = {card.id: card.kind for card in client.models()}
    provenance = client.score([PROBE], model=reward.model, weights=reward.weights).provenance
    differences = list(_find_differences(reward, provenance, kinds))
    lines = [f"rewards: {_describe_blend(reward, provenance)}; fingerprint {provenance.fingerprint}"]
    for name, signal in provenance.signals.items():
        adapter = "no adapter" if signal.adapter_sha256 is None else f"adapter {signal.adapter_sha256[:16]}"
        lines.append(f"  {name}: {kinds[name]}, model {signal.model}, revision {signal.revision[:16]}, {adapter}")
    if differences:
        raise ConfigError(
            f"reward: the service is not the one that the run expects: {'; '.join(differences)}. Start the service "
            "that the configuration was written for, name it with --url, or change reward.expect. It scores by\n"
            + "\n".join(lines)
        )
    return lines


def _describe_blend(reward: Reward, provenance: Provenance) -> str:
    """Return the weighted sum by which the service scores, such as `crs = 0.5 preference + 0.5 absolute`."""
    rule = provenance.blend
    name = reward.model or "weights of the run"
    if rule is None:
        return f"{name} = ?"
    scaling = f", standardised by {rule.standardise}" if rule.standardise != "none" else ""
    penalty = rule.length_penalty
    length = "" if penalty is None else f", minus {penalty.per_token:g} per completion token of {penalty.signal}"
    return f"{name} = {format_weights(rule.weights)}{scaling}{length}"


def _find_differences(reward: Reward, provenance: Provenance, kinds: Mapping[str, str]) -> Iterator[str]:
    """Yield the differences between the service and `reward.expect`."""
    fingerprint = reward.expect.fingerprint
    if fingerprint is not None and not provenance.fingerprint.startswith(fingerprint):
        yield f"fingerprint is {provenance.fingerprint[:16]}, not {fingerprint}"
    for name, expected in reward.expect.signals.items():
        signal = provenance.signals.get(name)
        if signal is None:
            yield f"{name} is not a signal of this reward, which has {', '.join(provenance.signals)}"
            continue
        served = {"kind": kinds[name], **{key: getattr(signal, key) for key in ("model", "revision", "adapter_sha256")}}
        for key, wanted in expected.model_dump(exclude_none=True).items():
            # Hashes may be given by their first digits; kinds and models by their full names only.
            is_name = key in ("kind", "model")
            if served[key] != wanted if is_name else not str(served[key]).startswith(wanted):
                yield f"{name}: {key} is {str(served[key]) if is_name else str(served[key])[:16]}, not {wanted}"


@dataclass(frozen=True, slots=True)
class CompletionScore:
    """The score of one completion.

    Attributes:
        value: score on the scale of `reward.value`, a logit or a probability.
        signals: logits of the signals that the score is computed from, by name.
    """

    value: float
    signals: dict[str, float]


class Rewards:
    """A source of scores by one signal, one blend, or the run's own weights.

    Args:
        client: client of the reward service.
        reward: reward of the run's configuration.
        fingerprint: fingerprint of the models that scored earlier in the same run; None at its start.
        pause_s: seconds before the first retry of failed items.

    Attributes:
        fingerprint: fingerprint of the models that have scored so far, or None.
    """

    def __init__(self, client: RewardClient, reward: Reward, fingerprint: str | None, pause_s: float = PAUSE_S) -> None:
        self._client, self._reward, self._pause_s = client, reward, pause_s
        self.fingerprint = fingerprint

    def score(self, items: Sequence[Item]) -> list[CompletionScore | str]:
        """Return the score of each item in order, or the code of its error where `reward.failed` is `drop`.

        Items with a retryable error are sent again first, up to three times.

        Raises:
            RewardError: an item has no score and `reward.failed` is `stop`; or other models answered than before.
            AssayError: the service could not be reached, or refused a request.
        """
        rows = self._request_scores(items)
        for attempt in range(ROUNDS):
            failed_items = [i for i, row in enumerate(rows) if isinstance(row, ScoreFailure) and row.error.retryable]
            if not failed_items:
                break
            time.sleep(self._pause_s * 2**attempt)
            for i, row in zip(failed_items, self._request_scores([items[i] for i in failed_items]), strict=True):
                rows[i] = row
        failed = next((row for row in rows if isinstance(row, ScoreFailure)), None)
        if failed is not None and self._reward.failed == "stop":
            raise RewardError(
                f"the service could not score a completion: {failed.error.code}: {failed.error.message} "
                "(set reward.failed: drop to drop and count such completions)"
            )
        return [self._read_score(row) for row in rows]

    def _request_scores(self, items: Sequence[Item]) -> list[Score | ScoreFailure]:
        """Return the service's results for items, after checking that its models have not changed."""
        result = self._client.score(items, model=self._reward.model, weights=self._reward.weights)
        if self.fingerprint not in (None, result.fingerprint):
            now, before = result.fingerprint[:12], str(self.fingerprint)[:12]
            raise RewardError(
                f"the service's fingerprint is {now} now, and was {before} before: start the service with the same "
                "models and blend again, or begin a new run"
            )
        self.fingerprint = result.fingerprint
        return list(result.data)

    def _read_score(self, row: Score | ScoreFailure) -> CompletionScore | str:
        """Return the score of a result on the configured scale, or the code of its error."""
        if isinstance(row, ScoreFailure):
            return row.error.code
        signals = {name: value.logit for name, value in row.signals.items()}
        if self._reward.value == "logit":
            return CompletionScore(row.score, signals)
        probability = next(iter(row.signals.values())).prob if len(row.signals) == 1 else None
        if probability is None:
            raise RewardError(
                f"reward: value: {self._reward.model!r} is not a single absolute signal, so it has no probability; "
                "use logit"
            )
        return CompletionScore(probability, signals)
