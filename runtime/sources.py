"""Sources: the triggers of the code that is served, made from what it declares, started and stopped.

Imports the floor and the trigger protocol.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from headrace.runtime.errors import HeadraceError
from headrace.runtime.kinds import trigger_class, trigger_name
from headrace.runtime.model.spec import FunctionSpec, Manifest
from headrace.runtime.trigger import Source, Timed, Trigger, TriggerContext


class Sources:
    """What watches for the functions of `manifest`.

    Args:
        context: what a trigger is given, by its name, its function and itself.
        ready: called with whether notifications find their sources.
        report: told what goes wrong.
    """

    def __init__(
        self,
        manifest: Callable[[], Manifest],
        *,
        context: Callable[[str, FunctionSpec, Trigger], TriggerContext],
        ready: Callable[[bool], None],
        report: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._manifest = manifest
        self._context = context
        self._ready = ready
        self._report = report
        self._running: list[Source] = []

    def made(self, spec: FunctionSpec, kind: str, fields: dict[str, Any]) -> Trigger | None:
        """The trigger that was declared so; None, which is reported, when it cannot be made."""
        try:
            return trigger_class(kind).from_fields(fields)  # type: ignore[no-any-return]
        except HeadraceError as error:
            self._tell("a trigger cannot be used", spec, kind, error)
            return None

    def schedules(self) -> dict[str, tuple[FunctionSpec, Timed]]:
        """What is declared to happen at moments that are known ahead, by the trigger's name."""
        found: dict[str, tuple[FunctionSpec, Timed]] = {}
        for name, spec, trigger in self._declared():
            timed: object = trigger
            if isinstance(timed, Timed):
                found[name] = (spec, timed)
        return found

    async def start(self) -> None:
        """Start all; one that cannot start is reported, and the others serve."""
        for name, spec, trigger in self._declared():
            source = trigger.source(self._context(name, spec, trigger))
            if source is None:
                continue
            try:
                await source.start()
                self._running.append(source)
            except HeadraceError as error:
                self._tell("a trigger could not start", spec, trigger.kind, error)
        self._ready(True)

    async def stop(self) -> None:
        """Stop all; twice is harmless."""
        running, self._running = self._running, []
        for source in running:
            await source.stop()

    async def restart(self) -> None:
        """Watch for the functions that the manifest has now."""
        self._ready(False)  # what comes between the two would find nobody
        await self.stop()
        await self.start()

    def _declared(self) -> Iterator[tuple[str, FunctionSpec, Trigger]]:
        for spec in self._manifest().functions:
            counts: dict[str, int] = {}
            for given in spec.triggers:
                index = counts[given.kind] = counts.get(given.kind, -1) + 1
                trigger = self.made(spec, given.kind, given.fields)
                if trigger is not None:
                    yield trigger_name(spec, given.kind, given.fields, index), spec, trigger

    def _tell(self, message: str, spec: FunctionSpec, kind: str, error: HeadraceError) -> None:
        self._report(message, {"function": spec.name, "kind": kind, "error": str(error)})
