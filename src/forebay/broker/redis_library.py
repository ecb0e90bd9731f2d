"""The function library of the Redis home: put together, compared, loaded.

The parts in ``lua/`` make one library. Its name carries the major version of what it promises,
so that two majors can run beside each other during a roll; within a major the newest text wins.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from forebay.broker.keys import SUFFIX
from forebay.errors import CannotBoot

__all__ = ["FUNCTION", "MAJOR", "NAME", "load_library", "source"]

MAJOR = 1
NAME = f"forebay_v{MAJOR}"
FUNCTION = f"fb{MAJOR}_"
"""What every function's name begins with."""


@cache
def source(clock_key: str = "") -> str:
    """The library's text. ``clock_key``: for tests only, a key that holds the time."""
    parts = sorted(
        (part.name, part.read_text(encoding="utf-8"))
        for part in (files("forebay.broker") / "lua").iterdir()
        if part.name.endswith(".lua")
    )
    keys = ", ".join(f"{name} = '{suffix}'" for name, suffix in SUFFIX.items())
    clock = f"'{clock_key}'" if clock_key else "false"
    head = f"#!lua name={NAME}\nlocal K = {{{keys}}}\nlocal PREFIX, CLOCK = '{FUNCTION}', {clock}\n"
    body = "".join(text for _, text in parts)
    return head + body + "".join(map(_register, re.findall(r"^function API\.(\w+)", body, re.M)))


BEGINS = frozenset({"submit", "append", "copy"})
"""What is refused when memory is full. Work that was let in goes on."""


def _register(name: str) -> str:
    flags = "{}" if name in BEGINS else "{'allow-oom'}"
    return (
        f"redis.register_function{{function_name = '{FUNCTION}{name}', "
        f"callback = entry('{name}'), flags = {flags}}}\n"
    )


async def load_library(client: Any, text: str) -> bool:
    """Load ``text`` unless it is there already; whether it had to be.

    ``client``: a redis-py client that decodes. Raises `CannotBoot` when a newer major than ours serves
    this Redis: its clients write what we cannot read.
    """
    found = await client.function_list("forebay_v*", withcode=True)
    there = {entry["library_name"]: entry["library_code"] for entry in found}
    newer = [name for name in there if _major(name) > MAJOR]
    if newer:
        raise CannotBoot(
            f"this Redis is used by a newer version of Forebay ({newer[0]}), ours is {NAME}",
            stage="broker",
        )
    if there.get(NAME) == text:
        return False
    await client.function_load(text, replace=True)
    return True


def _major(name: str) -> int:
    match = re.fullmatch(r"forebay_v(\d+)", name)
    return int(match[1]) if match else 0
