"""Add signals to a running service, and remove them, by replacing its scorer as a whole.

A request takes the scorer once, so that it is answered by one set of signals. A new signal is loaded on a thread of its
own, with a base of its own, while the others are served. It serves only after it has proved itself as at a start.
"""

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, get_args

import torch
from starlette.datastructures import State

from assay_service.added_signal import read_added
from assay_service.api.scorer import Scorer
from assay_service.api.served_metrics import show_signals
from assay_service.compat_settings import WireName
from assay_service.errors import NotReady, OperationRefused, OperationRunning, StartError, UnknownModel
from assay_service.loader import load_signals
from assay_service.memory import free_garbage
from assay_service.registry import Registry, Signal
from assay_service.scoring.served_model import ServedModel
from assay_service.settings import Settings

_RETRY_AFTER_S = 10.0
_POLL_S = 0.1
# Searches for garbage after the last request of a removed signal. A worker's frame may hold its model a moment longer.
_SEARCHES = 20

# Signals by name with the results of the test of invariance, as `load_signals` returns them.
_Loaded = tuple[dict[str, Signal], dict[str, bool]]

_log = logging.getLogger("assay")


class Administration:
    """The operations that change the signals of a running service, one at a time.

    Args:
        state: state of the application, whose `scorer` is replaced.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._running: str | None = None
        self._thread: threading.Thread | None = None
        self._freeing: set[asyncio.Task[None]] = set()

    @property
    def is_loading(self) -> bool:
        """Return True while a thread loads a signal, also if nobody waits for it any more."""
        return self._thread is not None and self._thread.is_alive()

    async def add(self, name: str, declared: Mapping[str, Any], caller: str | None) -> Registry:
        """Load a signal, prove it, and serve it from then on; return the registry that serves it.

        Args:
            name: name of the signal.
            declared: keys of the signal, as in the configuration file.
            caller: name of the API key, for the log.

        Raises:
            OperationRefused: the name is taken, or the signal cannot be served; nothing has changed.
            OperationRunning: another operation runs.
            NotReady: the service began to drain before the signal was loaded.
        """
        self._check_enabled()
        registry, started_s = self._get_registry(), time.monotonic()
        if name in registry.signals or name in registry.blends:
            raise OperationRefused(
                "a signal or blend has this name; remove it first, or give another name",
                code="signal_exists",
                param="name",
            )
        with self._alone(f"adds the signal {name}"):
            loaded = await self._load(name, declared)
            fields = {"signal": name, "caller": caller, "seconds": round(time.monotonic() - started_s, 1)}
            if isinstance(loaded, str):
                _log.warning("a signal is not added: %s", loaded, extra={"fields": fields})
                raise OperationRefused(loaded, param="signal")
            # Nothing else replaces the scorer meanwhile, and nothing waits between these lines.
            registry = self._switch(self._get_registry().add(*loaded))
            fields |= {"fingerprint": registry.fingerprint(), **registry.signals[name].provenance.describe()}
            _log.info("a signal is added", extra={"fields": fields})
        return registry

    async def remove(self, name: str, caller: str | None) -> Registry:
        """Serve without a signal from now on, and return the registry that does.

        Running requests finish with it, and its memory is free soon after the last one.

        Args:
            name: name of the signal.
            caller: name of the API key, for the log.

        Raises:
            UnknownModel: there is no such signal.
            OperationRefused: the signal is a default or a part of a blend.
            OperationRunning: another operation runs.
        """
        self._check_enabled()
        with self._alone(f"removes the signal {name}"):
            scorer: Scorer = self._state.scorer
            if name not in scorer.registry.signals:
                raise UnknownModel(f"not a served signal; signals are {', '.join(scorer.registry.signals)}")
            if (use := self._explain_use(name)) is not None:
                raise OperationRefused(
                    f"{use}; change the configuration file, and restart the service", code="signal_in_use"
                )
            model = scorer.registry.signals[name].model
            registry = self._switch(scorer.registry.remove(name))
            fields = {"signal": name, "caller": caller, "fingerprint": registry.fingerprint()}
            _log.info("a signal is removed", extra={"fields": fields})
            if all(other.model is not model for other in registry.signals.values()):
                task = asyncio.create_task(_free(name, weakref.ref(scorer), weakref.ref(model)))
                self._freeing.add(task)  # the event loop itself keeps no task
                task.add_done_callback(self._freeing.discard)
        return registry

    def _get_registry(self) -> Registry:
        scorer: Scorer = self._state.scorer
        return scorer.registry

    def _check_enabled(self) -> None:
        settings: Settings = self._state.settings
        if settings.admin_root is None or self._state.keys is None:
            raise OperationRefused(
                "the signals of this service are fixed; declare `admin_root` and `keys` in its configuration, and "
                "restart it",
                code="admin_disabled",
            )

    @contextmanager
    def _alone(self, operation: str) -> Iterator[None]:
        """Refuse other operations within the block."""
        if self._running is not None:
            raise OperationRunning(f"another request {self._running}; try again later", retry_after_s=_RETRY_AFTER_S)
        self._running = operation
        try:
            yield
        finally:
            self._running = None

    async def _load(self, name: str, declared: Mapping[str, Any]) -> _Loaded | str:
        """Load a signal on another thread, and return it, or why it cannot be served."""
        done: Future[_Loaded | str] = Future()
        done.set_running_or_notify_cancel()  # so that nobody can cancel it
        work = partial(_load, done, name, declared, self._state.settings, self._state.scorer.engine.alone)
        # Not a pool's thread, for which the process would wait at its end. The context has the id of the request.
        self._thread = threading.Thread(target=copy_context().run, args=(work,), name="assay-load", daemon=True)
        self._thread.start()
        loading = asyncio.wrap_future(done)
        while not loading.done():
            if (reason := self._state.drain.reason) is not None:
                loading.cancel()
                raise NotReady(reason)
            await asyncio.wait({loading}, timeout=_POLL_S)
        return loading.result()

    def _switch(self, registry: Registry) -> Registry:
        before: Scorer = self._state.scorer
        self._state.scorer = before.serve(registry)
        show_signals(self._state.metrics, registry, before.registry)
        return registry

    def _explain_use(self, name: str) -> str | None:
        """Return what needs a signal; None if nothing does."""
        registry, compat = self._get_registry(), self._state.settings.compat
        if registry.default == name:
            return "is the default of requests that name no model"
        if blends := [blend.name for blend in registry.blends.values() if name in blend.weights]:
            return f"is a part of the blend {blends[0]}"
        if wires := [wire for wire in get_args(WireName) if compat.get_wire(wire).model == name]:
            return f"is the default of the wire {wires[0]}"
        return None


def _load(
    done: "Future[_Loaded | str]", name: str, declared: Mapping[str, Any], settings: Settings, alone: threading.Lock
) -> None:
    """Load and prove a signal; the result is the signal, or the message of the error that a start would print."""
    try:
        done.set_result(_load_or_explain(name, declared, settings, alone))
    except Exception as error:
        done.set_exception(error)


def _load_or_explain(
    name: str, declared: Mapping[str, Any], settings: Settings, alone: threading.Lock
) -> _Loaded | str:
    try:
        resolved = read_added(name, declared, settings)
    except StartError as error:
        return error.message
    try:
        return load_signals({name: resolved}, alone)
    except StartError as error:
        message = error.message
    free_garbage()  # the error has held what was loaded until here
    return message


async def _free(name: str, scorer: "weakref.ref[Scorer]", model: "weakref.ref[ServedModel]") -> None:
    """Free the memory of a removed model after the last request that uses it; modules refer to each other in cycles."""
    while scorer() is not None:
        await asyncio.sleep(_POLL_S)
    for _ in range(_SEARCHES):
        free_garbage()
        if model() is None:
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()
            _log.info("the memory of a removed signal is free", extra={"fields": {"signal": name}})
            return
        await asyncio.sleep(1.0)
    _log.warning("the memory of a removed signal is still in use", extra={"fields": {"signal": name}})
