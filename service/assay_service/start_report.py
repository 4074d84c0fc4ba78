"""Report at start how signals are served, and what about them an operator should check."""

import logging

from assay_service.logs import START
from assay_service.registry import Signal

_log = logging.getLogger("assay")


def log_how_served(signal: Signal, *, is_invariant: bool) -> None:
    """Log how a signal is served, and warn where its scores may depend on the batch."""
    rules = signal.renderer.rules
    if (use := signal.preset) is not None:
        changed = f", with {', '.join(use.changed)} changed" if use.changed else ""
        logging.getLogger(START).info("signal %s: preset %s (%s)%s", signal.name, use.name, use.sha256[:16], changed)
    logging.getLogger(START).info(
        "signal %s: %s, reads %s, up to %d tokens, %s weights, computes in %s on %s, kernels %s",
        *(signal.name, signal.kind, rules.score_position, rules.max_length),
        *(signal.provenance.dtype, signal.provenance.compute, signal.model.device, signal.model.kernels),
    )
    if signal.provenance.compute == "int8" and signal.fidelity is None:
        _log.warning(
            "signal %s: how far its int8 logits are from float32 was never measured: `assay verify`", signal.name
        )
    if not is_invariant:
        _log.warning(
            "signal %s: its scores may depend on the other items of a batch; /info reports it as not invariant",
            signal.name,
        )


def warn_of_unprinted(name: str, tokens: tuple[str, ...]) -> None:
    """Warn of the tokens that a signal's tokenizer adds by itself and its template does not print.

    It is not an error, because nothing shows whether the model was trained with them. Trainers differ in whether they
    tokenize a rendered conversation with or without special tokens.
    """
    for token in tokens:
        _log.warning(
            "signals.%s: the tokenizer by itself adds %r to a text, but the template does not print it, so the model "
            "does not read it. If the model was trained with it, scores are wrong: print it in the template.",
            name,
            token,
        )
