"""A machine that only works: `forebay worker --processes N`, and its supervisor.

The supervisor of such a node replaces what dies and tells the shared broker of every exit at
once, so that the sessions of a killed worker go on elsewhere before its heartbeat is missed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import structlog

from forebay import supervisor
from forebay.broker.link_client import SupervisorLink, path_of
from forebay.config import Config
from forebay.core.kinds import Kind
from forebay.serve_log import log_env
from forebay.serve_preload import is_light, preload
from forebay.serve_store import BROKER_ENV
from forebay.supervisor import Event, Link, ProcessSpec

__all__ = ["Node", "link_to"]

log = structlog.get_logger(__name__)


def link_to(broker: str) -> Link:
    """The supervisor's line to the broker at ``broker``."""
    if broker.startswith("unix://"):
        return SupervisorLink(path_of(broker))
    from forebay.broker.redis_supervisor import RedisSupervisor  # the store's client is large

    return RedisSupervisor(broker)


@dataclass(frozen=True, slots=True)
class Node:
    """Workers of one kind on this machine. ``engine``: as ``--engine`` takes it."""

    config: Config
    broker: str
    kind: Kind
    engine: str
    slots: int | None = None
    model: str | None = None
    blobs_dir: str | None = None

    def specs(self, processes: int) -> list[ProcessSpec]:
        """One process each, alike but for its name."""
        argv = [sys.executable, "-m", "forebay", "worker"]
        argv += ["--kind", str(self.kind), "--engine", self.engine]
        for flag, value in (
            ("--slots", self.slots),
            ("--model", self.model),
            ("--blobs-dir", self.blobs_dir),
        ):
            argv += [flag, str(value)] if value is not None else []
        group = f"{self.kind}/{self.engine.partition(':')[0]}"
        env = {
            BROKER_ENV: self.broker,
            **log_env(self.config),
        }
        light = is_light(self.kind, self.engine.partition(":")[0])
        return [
            ProcessSpec(
                name=f"{group}-{n}", argv=argv, role="worker", group=group, env=env, light=light
            )
            for n in range(1, processes + 1)
        ]

    async def serve(self, processes: int) -> int:
        """Keep so many running until SIGTERM; the exit status."""
        engine = self.engine.partition(":")[0]
        shared = not self.broker.startswith("unix://")
        loaded = preload(self.config, [(self.kind, engine)], gateways=False, shared=shared)
        return await supervisor.serve(
            self.specs(processes), link=link_to(self.broker), on_event=_note, preload=loaded
        )


def _note(event: Event) -> None:
    """Where there is no screen, what the supervisor logs is all there is to see."""
    log.debug("node.event", what=event.what, name=event.name)
