"""`forebay models`: engines and weights, what is missing and the command that gets it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from forebay.choice import EngineState, engine_state, models_dir
from forebay.commands.common import console, dump, settled
from forebay.engines import REGISTRY, fetch, weights
from forebay.errors import ForebayError

__all__ = ["fetch_all", "show", "verify"]

# Separate extras: not fetched unless named (Piper's runtime is GPL).
OPTIONAL = frozenset({"joe"})


def _states(folder: Path) -> list[EngineState]:
    return [engine_state(kind, name, folder) for kind, name in REGISTRY]


def show(as_json: bool) -> int:
    folder = models_dir(settled(None))
    states = _states(folder)
    if as_json:
        dump(
            {
                "folder": str(folder),
                "engines": [
                    {
                        "kind": s.kind,
                        "name": s.name,
                        "packages": s.packages,
                        "weights": s.weights,
                        "ready": s.ready,
                        "get": s.get,
                    }
                    for s in states
                ],
            }
        )
        return 0
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("engine", "state", "weights", "about"):
        rows.add_column(title, overflow="fold")
    for state in states:
        marks = ", ".join(f"{n}{'' if there else ' (missing)'}" for n, there in
                          state.weights.items())  # fmt: skip
        ready = "[green]ready[/]" if state.ready else "[yellow]missing[/]"
        rows.add_row(f"{state.kind}={state.name}", ready, marks, state.about)
    console.print(rows)
    console.print(f"weights are kept in {folder}", style="dim")
    for state in states:
        if state.get:
            console.print(f"{state.kind}={state.name}: {state.get}", markup=False)
        for name in (n for n, there in state.weights.items() if state.ready and not there):
            console.print(f"{state.kind}={state.name}: more with: {weights.command(name)}")
    return 0


def _named(names: Sequence[str]) -> list[str]:
    named = [one for name in names for one in weights.GROUPS.get(name, (name,))]
    for name in named:
        weights.get(name)
    return named or [name for name in weights.CATALOGUE if name not in OPTIONAL]


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        disable=not console.is_terminal,
    )


def fetch_all(names: Sequence[str]) -> int:
    """Bring the named weights; 0 when all are there afterwards."""
    folder = models_dir(settled(None))
    status = 0
    with _bar() as bar:
        for name in _named(names):
            if weights.locate(name, folder) is not None:
                console.print(f"{name}: there ({weights.locate(name, folder)})")
                continue
            if not console.is_terminal:
                size_mb = weights.get(name).size_bytes / 1e6
                console.print(f"{name}: fetching {size_mb:.0f} MB")
            task = bar.add_task(name, total=None, detail="")
            try:
                path = fetch.fetch(name, folder, _teller(bar, task))
            except ForebayError as exc:
                bar.remove_task(task)
                console.print(f"[red]{name}:[/] {exc.message}")
                status = 1
            else:
                bar.update(task, detail="done")
                console.print(f"{name}: {path}")
    return status


def _teller(bar: Progress, task: TaskID) -> fetch.Progress:
    def tell(stage: fetch.FetchStage) -> None:
        bar.update(
            task,
            completed=stage.done_bytes,
            total=stage.total_bytes or None,
            detail=f"{stage.stage} {stage.detail}",
        )

    return tell


def verify(names: Sequence[str]) -> int:
    """Check the SHA-256 of what is here. Absent weights count only when they were named."""
    folder = models_dir(settled(None))
    wrong: list[str] = []
    with _bar() as bar:
        for name in _named(names):
            if not names and weights.locate(name, folder) is None:
                console.print(f"{name}: not here")
                continue
            task = bar.add_task(name, total=weights.get(name).size_bytes, detail="sha256")

            def tell(done: int, total: int, task: TaskID = task) -> None:
                bar.update(task, completed=done, total=total)

            found = weights.verify(name, folder, tell)
            console.print(f"{name}: {'right' if not found else 'WRONG'}")
            wrong += found
    for line in wrong:
        console.print(line, style="red", markup=False)
    return 1 if wrong else 0
