"""Settings of notebooks and their kernels. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare

__all__ = [
    "CELL_S",
    "CONFINE",
    "CPUS",
    "DISK_MIB",
    "ENABLED",
    "FLUSH_MS",
    "FOLDER",
    "IDLE_H",
    "INTERRUPT_S",
    "KERNEL_ENGINES",
    "KERNEL_WORKERS",
    "MEMORY_MIB",
    "NETWORK",
    "NOTEBOOKS",
    "OUTPUT_MIB",
    "PROCESSES",
]

KERNEL_WORKERS = declare.whole(
    "workers.kernel",
    1,
    "Worker processes for notebooks; each runs kernels for `kernel.notebooks` of them.",
    low=0,
    high=64,
    flag="--workers kernel=N",
)
KERNEL_ENGINES = declare.words(
    "kernel.engines",
    "Engines as NAME[:key=value,...]. Unset: `python`, where `kernel.enabled` allows it.",
    flag="--engine kernel=...",
)
ENABLED = declare.text(
    "kernel.enabled",
    "auto",
    "Whether notebooks run code here. `auto`: on a loopback address, where ipykernel is "
    "installed, and as root only where bubblewrap is. On any other address say `yes`; kernels "
    "are then confined or do not start.",
    choices=("auto", "yes", "no"),
)
CONFINE = declare.text(
    "kernel.confine",
    "auto",
    "Whether kernels run inside bubblewrap. `auto`: where it works; as root, and on addresses "
    "that are not loopback, nothing else will do. `never` lets notebooks do all that this user "
    "may.",
    choices=("auto", "always", "never"),
)
NETWORK = declare.yes_no(
    "kernel.network", False, "Whether confined kernels reach the network, this machine included."
)
NOTEBOOKS = declare.whole(
    "kernel.notebooks",
    8,
    "Notebooks with a kernel, per worker. A notebook holds its place until its kernel is shut "
    "down or was idle for `kernel.idle_h`.",
    low=1,
    high=1000,
)
MEMORY_MIB = declare.whole(
    "kernel.memory_mib", 1024, "Memory of one kernel.", unit="MiB", low=64, high=1_000_000
)
PROCESSES = declare.whole(
    "kernel.processes", 128, "Processes and threads of one confined kernel.", low=16, high=100_000
)
CPUS = declare.number("kernel.cpus", 1.0, "Processors of one confined kernel.", low=0.05, high=1024)
DISK_MIB = declare.whole(
    "kernel.disk_mib",
    1024,
    "Files of one notebook. A confined kernel that writes more is ended, about half a second late.",
    unit="MiB",
    low=1,
    high=10_000_000,
)
OUTPUT_MIB = declare.number(
    "kernel.output_mib",
    10.0,
    "Output of one cell; what is over it is not shown, and a notice says so.",
    unit="MiB",
    low=0.5,
    high=10,
)
IDLE_H = declare.number(
    "kernel.idle_h",
    24.0,
    "An idle kernel is ended after so long.",
    unit="hours",
    low=0.001,
    high=1e5,
)
CELL_S = declare.number(
    "kernel.cell_s",
    300.0,
    "Longest run of a cell: then it is interrupted, and its kernel ended if it takes no notice.",
    unit="seconds",
    low=1,
    high=604_800,
)
INTERRUPT_S = declare.number(
    "kernel.interrupt_s",
    5.0,
    "After an interrupt nobody waits for longer: the kernel is ended.",
    unit="seconds",
    low=0.1,
    high=60,
)
FLUSH_MS = declare.number(
    "kernel.flush_ms",
    10.0,
    "Longest time that printed text waits inside the kernel where the code does not flush. "
    "Jupyter's own is 200.",
    unit="ms",
    low=1,
    high=1000,
)
FOLDER = declare.maybe_path(
    "kernel.folder",
    "Folder of all notebooks' files. Unset: `notebooks` in the data folder. Several workers "
    "must share it.",
)
