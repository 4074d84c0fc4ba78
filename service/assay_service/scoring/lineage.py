"""Compare the base on which an adapter was trained, as its file names it, with the base on which it is served.

A LoRA adapter fits every base of the same shapes. On another base than its own it gives a meaningless number.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from assay_service.errors import StartError
from assay_service.scoring import manifest
from assay_service.scoring.files import ADAPTER_CONFIG, read_config

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def check_lineage(adapters: Sequence[Path], base: Path, hub_id: str | None, declared: str | None = None) -> None:
    """Check that `adapters` were trained on `base`, as far as their files show it.

    An adapter that was trained on another adapter needs that one before it. Another directory of this machine, or a hub
    id with another name, counts as other weights unless `declared` names it. A name that cannot be compared, such as a
    path of another machine, is accepted. A manifest's hash of the base is certain; it is compared when the weights are
    read.

    Args:
        adapters: directories of the adapters in the order in which they are applied.
        base: directory of the base.
        hub_id: hub id of the base; None if it is not from the hub.
        declared: other name under which the first adapter knows this base; None if there is none.

    Raises:
        StartError: an adapter was trained on something else; the message names both bases and what to declare.
    """
    if declared is not None and not adapters:
        raise StartError("adapter_base: is declared without an `adapter`; declare the `adapter` too, or remove it")
    for number, adapter in enumerate(adapters):
        trained_on = read_config(adapter, ADAPTER_CONFIG).get("base_model_name_or_path") or ""
        hashed = manifest.read(adapter).base_sha256 is not None
        _check_stack(adapter, trained_on, adapters[:number])
        if number > 0 and hashed:
            raise StartError(
                f"{adapter}: its {manifest.FILE_NAME} says that it was trained on a whole base, not on top of another "
                "adapter; serve it on that base alone"
            )
        if number == 0 and declared not in (None, trained_on):
            raise StartError(
                f"adapter_base: is {declared!r}, but {adapter / ADAPTER_CONFIG} says {trained_on!r}; declare the "
                "latter if its weights are those of `base`"
            )
        # A later adapter was trained on a merged base, whose name says nothing about this base.
        certain = number > 0 or hashed or declared is not None
        if not certain and _is_another(trained_on, base, hub_id):
            raise StartError(
                f"{adapter}: was trained on {trained_on}, but `base` is {hub_id or base}; declare the right `base`. "
                f"If it was trained on this base with another adapter merged into it, declare "
                f"`adapter: [FIRST, {adapter}]`; if both have the same weights, `adapter_base: {trained_on}`"
            )


def _check_stack(adapter: Path, trained_on: str, before: Sequence[Path]) -> None:
    """Refuse an adapter that was trained on another adapter which does not come before it."""
    earlier = Path(trained_on).expanduser()
    if trained_on and (earlier / ADAPTER_CONFIG).is_file() and earlier.resolve() not in before:
        raise StartError(
            f"{adapter}: was trained on top of the adapter {trained_on}; declare both, in that order: "
            f"`adapter: [{trained_on}, {adapter}]`, and the base of the first as `base`"
        )


def _is_another(trained_on: str, base: Path, hub_id: str | None) -> bool:
    """Return whether a name and a base certainly differ.

    Only the second part of hub ids is compared, because copies of a model have other owners.
    """
    path = Path(trained_on).expanduser()
    if trained_on and path.is_dir():  # a relative path may name another directory where the adapter was trained
        return path.is_absolute() and path.resolve() != base
    if hub_id is None or not _HUB_ID.fullmatch(trained_on):
        return False
    return trained_on.partition("/")[2].casefold() != hub_id.partition("/")[2].casefold()
