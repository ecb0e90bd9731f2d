"""The start screen of `forebay serve`: what loads, what runs, where, and how to stop it.

On a terminal one live view while models load, then one screen that stays. Elsewhere one
plain line for each thing that happens. Either way the words come from the supervisor's
events alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forebay import __version__
from forebay.core.spec import LoadStage, PoolView
from forebay.supervisor import Event

__all__ = ["Facts", "Screen"]

BAR = 20
STAGES = ("locate", "fetch", "weights", "allocate", "warm_up", "ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known before anything runs. ``workers``: process name -> "kind/engine" it runs.

    ``ports``: (name, address, what for). ``lacks``: (what is missing, command that gets it).
    """

    gateway: ClassVar[str] = "gateway"

    url: str
    workers: dict[str, str]
    gateways: Sequence[str] = (gateway,)
    ports: Sequence[tuple[str, str, str]] = ()
    lacks: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    data_dir: str = ""
    log_file: str = ""
    drain_s: float = 30.0


@dataclass(slots=True)
class _Process:
    text: str
    state: str = "starting"  # starting, ready, failed
    detail: str = ""


@dataclass(slots=True)
class Screen:
    """Feed it every supervisor `Event`; `close` when the supervisor has ended."""

    facts: Facts
    console: Console
    began_s: float = field(default_factory=time.monotonic)
    _processes: dict[str, _Process] = field(init=False)
    _pools: tuple[PoolView, ...] = ()
    _live: Live | None = None
    _shown: bool = False
    _halting: bool = False
    _said: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._processes = {name: _Process(text) for name, text in self.facts.workers.items()}
        self._processes |= {name: _Process(name) for name in self.facts.gateways}
        if self.console.is_terminal:
            self._live = Live(
                self._loading(), console=self.console, refresh_per_second=8, transient=True
            )
            self._live.start()
        else:
            self._say(f"forebay {__version__} starting on {self.facts.url}")
            self._lacks()

    # --------------------------------------------------------------------- events

    def on_event(self, event: Event) -> None:
        process = self._processes.get(event.name)
        match event.what:
            case "ready" if process is not None:
                process.state, process.detail = "ready", ""
            case "waiting" if process is not None:
                process.state, process.detail = "failed", event.detail
                self._say(f"{process.text}: {event.detail}; trying again in {event.wait_s:g} s")
            case "exited" if process is not None and not self._halting:
                process.state = "starting"
                self._say(f"{process.text}: process {event.pid} {event.detail}", later=True)
            case "no_spare":
                self._say(f"no warm spare for {event.name}: {event.detail}", later=True)
            case "pools":
                self._pools = event.pools
                self._say_stages()
            case "rolled":
                self._say(f"rolling restart: {event.detail} in {event.wait_s:g} s", later=True)
            case "halting":
                self._halting = True
                self._stop_live()
                self._say(f"stopping: open sessions have up to {self.facts.drain_s:g} s")
            case _:
                pass
        self._refresh()

    def close(self) -> None:
        self._stop_live()

    # ---------------------------------------------------------------------- words

    def _say(self, text: str, *, later: bool = False) -> None:
        """One line, not repeated. ``later``: only once the start screen stands."""
        if later and not self._shown:
            return
        self.console.print(text, markup=False, highlight=False)

    def _say_stages(self) -> None:
        if self._live is not None or self._shown:
            return
        for pool in self._pools:
            for worker, stage in pool.stages.items():
                text = f"{pool.name}: {_stage(stage)}"
                if self._said.get(worker) != text:
                    self._said[worker] = text
                    self._say(text)

    def _settled(self) -> bool:
        """Everything is up or has failed, and the gateway has told what it serves."""
        workers = [self._processes[name] for name in self.facts.workers]
        serving = {f"{pool.kind}/{pool.engine}" for pool in self._pools if pool.ready}
        return all(self._processes[name].state == "ready" for name in self.facts.gateways) and all(
            p.state == "failed" or (p.state == "ready" and p.text in serving) for p in workers
        )

    def _refresh(self) -> None:
        if self._shown:
            return
        if self._settled():
            self._shown = True
            self._stop_live()
            self._final()
        elif self._live is not None:
            self._live.update(self._loading())

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --------------------------------------------------------------------- screens

    def _loading(self) -> Table:
        rows = Table.grid(padding=(0, 2))
        rows.add_row(Text(f"Forebay {__version__}", style="bold"), Text("loading", style="dim"))
        for process in self._processes.values():
            stage = self._stage_of(process.text)
            state = {
                "ready": Text("ready", style="green"),
                "failed": Text(process.detail, style="red", overflow="fold"),
            }.get(process.state, Text(_stage(stage) if stage else "starting", style="yellow"))
            rows.add_row(process.text, state)
        return rows

    def _stage_of(self, text: str) -> LoadStage | None:
        """How far the least advanced worker of "kind/engine" is. While its engine is not
        known yet (it registers when loaded), any stage of that kind."""
        kind, _, engine = text.partition("/")
        found = [
            stage
            for pool in self._pools
            if pool.kind == kind and pool.engine in ("", engine)
            for stage in pool.stages.values()
        ]
        order = {name: n for n, name in enumerate(STAGES)}
        return min(found, key=lambda s: order.get(s.stage, -1), default=None)

    def _final(self) -> None:
        took_s = time.monotonic() - self.began_s
        console, facts = self.console, self.facts
        rows = Table.grid(padding=(0, 2))
        rows.add_row("open", Text(facts.url, style="bold cyan"))
        for name, address, about in facts.ports:
            rows.add_row(name, f"{address}  {about}")
        for pool in self._pools:
            if pool.ready:
                rows.add_row(str(pool.kind), _pool(pool))
        for process in self._processes.values():
            if process.state == "failed":
                rows.add_row(process.text, Text(process.detail, style="red", overflow="fold"))
        if facts.data_dir:
            rows.add_row("data", facts.data_dir)
        if facts.log_file:
            rows.add_row("log", facts.log_file)
        rows.add_row("stop", f"Ctrl-C; open sessions then have up to {facts.drain_s:g} s")
        console.print()
        console.print(Text(f"Forebay {__version__} is ready ({took_s:.1f} s)", style="bold green"))
        console.print(rows)
        self._lacks()
        console.print()

    def _lacks(self) -> None:
        for what, command in self.facts.lacks:
            self.console.print(f"missing: {what}\n    get it with: {command}", markup=False)
        for note in self.facts.notes:
            self.console.print(f"note: {note}", markup=False)


def _stage(stage: LoadStage) -> str:
    number = f" {stage.done}/{stage.total}" if stage.total else ""
    bar = ""
    if stage.stage in STAGES:
        at = STAGES.index(stage.stage) + (stage.done / stage.total if stage.total else 0)
        full = min(BAR, round(BAR * at / (len(STAGES) - 1)))
        bar = "#" * full + "." * (BAR - full) + " "
    facts = f" {stage.memory_mb:.0f} MB {stage.elapsed_s:.1f} s" if stage.memory_mb else ""
    detail = f" {stage.detail}" if stage.detail else ""
    return f"{bar}{stage.stage}{number}{detail}{facts}"


def _pool(pool: PoolView) -> str:
    mark = " (synthetic: not a model, for tests and load)" if pool.synthetic else ""
    workers = f"{_many(pool.ready, 'worker')}, {_many(pool.slots, 'slot')}"
    return f"{pool.model or pool.name} on {pool.engine}{mark}, {workers}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
