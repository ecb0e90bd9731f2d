"""What a kernel may touch: bubblewrap, a cgroup where one can be made, and limits.

Inside: user, process, network, IPC and host namespaces of its own, no capability, a cleared
environment, the system's programs and this Python read-only, the notebook's folder, a small
`/tmp`. Not there: this machine's processes and sockets, the gateway, Redis, other notebooks,
home folders, the data folder. Memory, processes and processor time of the whole kernel are
bounded by a cgroup; per process also by resource limits, which alone count where no cgroup
can be made (then the number of processes is bounded for the user). Root is exempt from that
bound: without a cgroup there is no jail for its kernels.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Cgroup",
    "Jail",
    "Limits",
    "boot_settings",
    "kept_environment",
    "probe",
    "sweep",
    "usable_cgroup",
]

MiB = 1024 * 1024
HOME = "/home/notebook"
BOOT = Path(__file__).with_name("kernel_boot.py")
INSIDE = Path(__file__).with_name("kernel_inside.py")
QUICK = Path(__file__).with_name("kernel_quick.py")
PROBE_S = 10.0
KEPT = (
    "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "PYTHONUTF8",
)  # fmt: skip
"""Of our environment, what a kernel gets. Keys and addresses are in the rest."""

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
ETC = (
    "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "ssl",
    "ca-certificates", "fonts", "mime.types", "magic", "protocols", "services",
)  # fmt: skip
NET_ETC = ("resolv.conf", "hosts", "nsswitch.conf", "host.conf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one kernel with all its processes. ``disk``: of its folder, and of one file."""

    memory_bytes: int
    disk_bytes: int
    processes: int
    cpus: float
    network: bool = False
    nice: int = 5


@dataclass(frozen=True, slots=True)
class Jail:
    """How bubblewrap is called here. ``flags``: those this version knows."""

    program: str
    flags: frozenset[str]

    def wrap(
        self,
        command: Sequence[str],
        *,
        work: Path,
        sockets: Path,
        environment: Mapping[str, str],
        limits: Limits,
    ) -> list[str]:
        """``command`` inside. ``work`` appears as `HOME`, ``sockets`` under its own name."""
        argv = [
            self.program, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts",
            "--unshare-cgroup-try", "--uid", "1000", "--gid", "1000", "--hostname", "notebook",
            "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        ]  # fmt: skip
        if not limits.network:
            argv.append("--unshare-net")
        if "--disable-userns" in self.flags:
            argv.append("--disable-userns")
        argv += _system(limits.network)
        argv += ["--proc", "/proc", "--dev", "/dev"]
        for place in ("/tmp", "/dev/shm"):
            if "--size" in self.flags:
                argv += ["--size", str(min(limits.disk_bytes, 256 * MiB))]
            argv += ["--tmpfs", place]
        argv += _python()  # after the temporary folders: it may live in one of them
        for part in (BOOT, INSIDE, QUICK):
            argv += ["--ro-bind", str(part), str(part)]
        argv += ["--bind", str(work), HOME, "--bind", str(sockets), str(sockets), "--chdir", HOME]
        argv += ["--remount-ro", "/", "--clearenv"]  # the root is memory: nothing is kept there
        for name, value in environment.items():
            argv += ["--setenv", name, value]
        return [*argv, "--", *command]


def _system(network: bool) -> list[str]:
    argv: list[str] = []
    for place in SYSTEM:
        if os.path.islink(place):
            argv += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            argv += ["--ro-bind", place, place]
    for name in (*ETC, *(NET_ETC if network else ())):
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return argv


def _python() -> list[str]:
    """The interpreter and its packages, where they lie outside the system's folders."""
    argv: list[str] = []
    program = os.path.dirname(os.path.realpath(sys.executable))
    python = {os.path.realpath(place) for place in (sys.prefix, sys.base_prefix, program)}
    for place in sorted(python | {sys.prefix}):
        if not place.startswith("/usr"):
            argv += ["--ro-bind", place, place]
    return argv


def kept_environment(work: str, *, jailed: bool) -> dict[str, str]:
    """A kernel's environment: only what `KEPT` and a home need."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
    if jailed or "PATH" not in kept:
        kept["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    kept["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), kept["PATH"]])
    kept.setdefault("LANG", "C.UTF-8")
    return kept | {
        "HOME": work,
        "USER": "notebook",
        "PYTHONUNBUFFERED": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "XDG_CACHE_HOME": "/tmp/cache",
    }


def probe() -> tuple[Jail | None, str]:
    """The jail that works here, or why there is none. Runs two short programs; blocks."""
    program = shutil.which("bwrap")
    if program is None:
        return None, "bubblewrap (bwrap) is not installed"
    try:
        said = subprocess.run(
            [program, "--help"], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
        flags = {
            flag for flag in ("--disable-userns", "--size") if flag in said.stdout + said.stderr
        }
        for tried in (frozenset(flags), frozenset(flags - {"--disable-userns"})):
            found = Jail(program, tried)
            why = _try(found)
            if not why:
                unbounded = _unbounded()
                return (None, unbounded) if unbounded else (found, "")
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    return None, f"bubblewrap cannot make its namespaces here: {why}"


def _try(jail: Jail) -> str:
    """Empty when a program ran inside, else what was said."""
    limits = Limits(memory_bytes=0, disk_bytes=MiB, processes=0, cpus=0)
    here = Path("/usr")
    argv = jail.wrap(
        ["/bin/sh", "-c", "exit 0"], work=here, sockets=here, environment={}, limits=limits
    )
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=PROBE_S, check=False)
    return "" if ran.returncode == 0 else (ran.stderr.strip()[-200:] or f"exit {ran.returncode}")


def _unbounded() -> str:
    """Why root's kernels could have any number of processes here; empty: they could not.
    Namespaces or not, the system exempts root from the limit of processes of a user."""
    if os.geteuid() != 0:
        return ""
    limits = Limits(memory_bytes=64 * MiB, disk_bytes=MiB, processes=16, cpus=1.0)
    group = usable_cgroup(f"forebay-{os.getpid()}-0", limits)
    if group is None:
        return "of root's kernels only a cgroup bounds the processes, and none can be made here"
    group.remove()
    return ""


# ------------------------------------------------------------------------------ cgroups


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One kernel's groups: a folder of each hierarchy. ``version``: 1 or 2."""

    version: int
    folders: tuple[Path, ...]

    def wrap(self, command: Sequence[str]) -> list[str]:
        """``command``, begun inside the group."""
        script = "".join(
            f'echo $$ > "${n}/cgroup.procs"; ' for n in range(1, len(self.folders) + 1)
        )
        script += f'shift {len(self.folders)}; exec "$@"'
        return ["/bin/sh", "-c", script, "sh", *map(str, self.folders), *command]

    def killed_for_memory(self) -> bool:
        """Whether the system ended a process of it for using too much memory."""
        for folder in self.folders:
            for name, key in (("memory.events", "oom_kill"), ("memory.oom_control", "oom_kill")):
                try:
                    lines = (folder / name).read_text().splitlines()
                except OSError:
                    continue
                for line in lines:
                    word, _, value = line.partition(" ")
                    if word == key and value.strip() not in ("", "0"):
                        return True
        return False

    def remove(self) -> None:
        """Once its processes are gone; waits for the last of them a moment. Blocks."""
        for folder in self.folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)


def usable_cgroup(name: str, limits: Limits) -> Cgroup | None:
    """Make the groups of a kernel called ``name``; None where that is not allowed here."""
    own = _own_groups()
    made = _version_2(name, limits, own.get("")) if own.get("") is not None else None
    return made or _version_1(name, limits, own)


def _own_groups() -> dict[str, str]:
    """Controller to this process's own path in its hierarchy; "" is version 2."""
    found: dict[str, str] = {}
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path.lstrip("/")
    return found


ROOT = Path("/sys/fs/cgroup")


def _version_2(name: str, limits: Limits, path: str | None) -> Cgroup | None:
    if path is None or not (ROOT / "cgroup.controllers").is_file():
        return None
    folder = ROOT / path / name
    values = {
        "memory.max": str(limits.memory_bytes),
        "pids.max": str(limits.processes),
        "cpu.max": f"{int(limits.cpus * 100_000)} 100000",
    }
    return _made(2, {folder: values}, {"memory.swap.max": "0"})


def _version_1(name: str, limits: Limits, own: Mapping[str, str]) -> Cgroup | None:
    values = {
        "memory": {"memory.limit_in_bytes": str(limits.memory_bytes)},
        "pids": {"pids.max": str(limits.processes)},
        "cpu": {"cpu.cfs_quota_us": str(int(limits.cpus * 100_000))},
    }
    if not all(controller in own for controller in values):
        return None
    folders = {ROOT / c / own[c] / name: files for c, files in values.items()}
    return _made(1, folders, {"memory.memsw.limit_in_bytes": str(limits.memory_bytes)})


def _made(
    version: int, folders: Mapping[Path, Mapping[str, str]], wishes: Mapping[str, str]
) -> Cgroup | None:
    made = Cgroup(version, tuple(folders))
    try:
        for folder, files in folders.items():
            folder.mkdir(exist_ok=True)
            for file, value in files.items():
                (folder / file).write_text(value)
            for file, value in wishes.items():
                if (folder / file).exists():
                    (folder / file).write_text(value)
    except OSError:
        made.remove()
        return None
    return made


def sweep(temporary: Path) -> None:
    """Remove what kernels of workers that were killed have left: groups and socket folders.
    Blocks. What still has a process in it stays."""
    own = _own_groups()
    places = [ROOT / c / own[c] for c in ("memory", "pids", "cpu") if c in own]
    places += [ROOT / own[""]] if "" in own else []
    for folder in [d for place in places for d in place.glob("forebay-*-*")]:
        if _orphan(folder.name):
            with contextlib.suppress(OSError):
                folder.rmdir()
    for folder in temporary.glob("fbk-*-*"):
        if _orphan(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _orphan(name: str) -> bool:
    """Whether the worker whose process id stands in ``name`` is gone."""
    pid = name.split("-")[1]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def boot_settings(limits: Limits, *, flush_s: float, bound_processes: bool) -> str:
    """What `kernel_boot` is told."""
    values = {"DATA": limits.memory_bytes, "FSIZE": limits.disk_bytes, "CORE": 0}
    if bound_processes:
        values["NPROC"] = limits.processes
    return json.dumps({"limits": values, "flush_s": flush_s, "nice": limits.nice})
