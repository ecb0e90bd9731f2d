"""Instances of a model on GPUs: placed by free memory, refused with the numbers."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from forebay.broker.local_state import Worker
from forebay.core.spec import WorkerInfo, WorkerView
from forebay.errors import CannotBoot, ConfigError
from forebay.gateway.metrics import GatewayMetrics
from forebay.gpus import Gpu, read_gpus, use_of
from forebay.placement import Want, place
from forebay.serve_devices import on_devices
from forebay.supervisor import ProcessSpec
from forebay.worker.main import _gpu_costs

MIB = 1 << 20
TWO = [Gpu(0, "A", 8000, 5000), Gpu(1, "B", 8000, 7000)]


class NVMLError(Exception):
    pass


class FakeNvml:
    """What of NVML is asked, for GPUs of (total, free) MiB."""

    NVMLError = NVMLError

    def __init__(self, *gpus: tuple[int, int], fails: bool = False) -> None:
        self.gpus = gpus
        self.fails = fails
        self.open = 0
        self.processes: list[Any] = []

    def nvmlInit(self) -> None:
        if self.fails:
            raise NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.gpus):
            raise NVMLError("no such device")
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"Fake %d" % handle

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        total, free = self.gpus[handle]
        return SimpleNamespace(total=total * MIB, free=free * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return self.processes

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if not self.processes:
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=40)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(fake: FakeNvml) -> FakeNvml:
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return use


def want(name: str, device: str = "auto", memory_mb: int = 3000, spare: bool = False) -> Want:
    return Want(name=name, device=device, memory_mb=memory_mb, spare=spare)


def test_each_instance_goes_where_most_memory_is_left() -> None:
    placed = place([want("a"), want("b"), want("c")], TWO)
    assert placed.devices == {"a": "cuda:1", "b": "cuda:0", "c": "cuda:1"}
    assert placed.env("a")["CUDA_VISIBLE_DEVICES"] == "1"
    equal = [Gpu(0, "A", 8000, 5000), Gpu(1, "B", 8000, 5000)]
    unsaid = place([want(n, memory_mb=0) for n in "abcd"], equal)
    assert sorted(unsaid.devices.values()) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(CannotBoot) as caught:
        place([want("image/x-1"), want("image/x-2"), want("image/x-3"), want("image/x-4")], TWO)
    assert caught.value.message == (
        "image/x-4 needs 3000 MB on a GPU, "
        "GPU 0 has 2000 MB of 8000 MB left, GPU 1 has 1000 MB of 8000 MB left"
    )
    with pytest.raises(CannotBoot, match="is for GPU 7, this machine has 2"):
        place([want("a", "cuda:7")], TWO)
    with pytest.raises(CannotBoot, match="is for GPU 0, this machine has 0"):
        place([want("a", "cuda:0", 0)], [])
    for wrong in ("tpu", "cuda", "cuda:x", "gpu:0"):
        with pytest.raises(ConfigError, match="expected cpu, auto or cuda:N"):
            place([want("a", wrong)], TWO)


def test_a_spare_takes_what_the_others_leave_and_is_left_out_otherwise() -> None:
    placed = place([want("spare", spare=True), want("a"), want("b"), want("c")], TWO)
    assert placed.devices == {"a": "cuda:1", "b": "cuda:0", "c": "cuda:1"}
    assert "spare needs 3000 MB" in placed.left_out["spare"]
    assert place([want("spare", spare=True)], TWO).devices == {"spare": "cuda:1"}


def test_without_a_gpu_everything_is_on_the_processor() -> None:
    placed = place([want("a"), want("b", "cpu")], [])
    assert placed.devices == {"a": "cpu", "b": "cpu"}
    assert placed.env("a") == {}


def test_gpus_are_read_from_nvml_and_it_is_closed_again(nvml: Any) -> None:
    fake = nvml(FakeNvml((8000, 5000), (24_000, 23_000)))
    assert read_gpus() == [Gpu(0, "Fake 0", 8000, 5000), Gpu(1, "Fake 1", 24_000, 23_000)]
    fake.processes = [
        SimpleNamespace(pid=7, usedGpuMemory=900),
        SimpleNamespace(pid=8, usedGpuMemory=None),
    ]
    assert use_of(1, 7).memory_bytes == 900  # type: ignore[union-attr]
    assert use_of(1, 7).busy == 0.4  # type: ignore[union-attr]
    assert use_of(1, 8).memory_bytes == 0  # type: ignore[union-attr]
    assert use_of(5, 7) is None
    fake.processes = []
    assert use_of(0, 7).busy is None  # type: ignore[union-attr]
    assert fake.open == 0


def test_no_driver_means_no_gpus(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(FakeNvml((8000, 8000), fails=True))
    assert (read_gpus(), use_of(0, 1)) == ([], None)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert (read_gpus(), use_of(0, 1)) == ([], None)


def spec(name: str, engine: str, *, spare: bool = False) -> ProcessSpec:
    argv = ["forebay", "worker", "--kind", "image", "--engine", engine]
    return ProcessSpec(name=name, argv=argv, role="worker", group="image/x", spare=spare)


def test_processes_are_told_their_gpu_and_see_no_other() -> None:
    engine = "waifu2x:device=auto,memory_mb=3000,threads=1"
    specs = [spec("w-1", engine), spec("w-2", engine), spec("s", engine, spare=True)]
    settled, notes = on_devices(specs, lambda: [Gpu(0, "A", 8000, 6500)])
    assert [s.name for s in settled] == ["w-1", "w-2"]
    assert settled[0].argv[-1] == "waifu2x:device=cuda:0,memory_mb=3000,threads=1"
    assert settled[0].env["CUDA_VISIBLE_DEVICES"] == "0"
    assert notes == ["no warm spare: s needs 3000 MB on a GPU, GPU 0 has 500 MB of 8000 MB left"]
    with pytest.raises(ConfigError, match="'memory_mb' of engine 'waifu2x' is 'lots'"):
        on_devices([spec("w-1", "waifu2x:device=auto,memory_mb=lots")], lambda: TWO)


def test_nothing_is_asked_or_changed_where_no_engine_names_a_device() -> None:
    def never() -> list[Gpu]:
        raise AssertionError

    gateway = ProcessSpec(name="gateway", argv=["forebay", "_gateway"], role="gateway")
    specs = [gateway, spec("a", "waifu2x:threads=1"), spec("b", "waifu2x:device=cpu")]
    assert on_devices(specs, never) == (specs, [])
    auto, _ = on_devices([spec("a", "waifu2x:device=auto")], lambda: [])
    assert auto[0].argv[-1] == "waifu2x:device=cpu"
    assert "CUDA_VISIBLE_DEVICES" not in auto[0].env


def test_a_worker_tells_what_it_uses_of_its_gpu(nvml: Any) -> None:
    fake = nvml(FakeNvml((8000, 5000)))
    fake.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=123 * MIB)]
    load = _gpu_costs("cuda:0")
    assert load == {"gpu_bytes": 123 * MIB, "gpu_busy": 0.4}
    assert _gpu_costs("cpu") == _gpu_costs(None) == _gpu_costs("cuda:9") == {}
    info = WorkerInfo(id="w", pools=["image/x"], slots=1, sessions=1)
    view = Worker("w", None, info=info, load=load).view()
    assert (view.gpu_bytes, view.gpu_busy) == (123 * MIB, 0.4)
    assert Worker("w", None, info=info).view().gpu_busy is None


def test_metrics_show_a_gpu_only_where_a_worker_has_one() -> None:
    metrics = GatewayMetrics()
    views = [
        WorkerView(id="a", pools=["image/x"], slots=1, sessions=1, gpu_bytes=7, gpu_busy=0.5),
        WorkerView(id="b", pools=["image/x"], slots=1, sessions=1),
    ]
    metrics.workers = lambda: views
    text = metrics.render().decode()
    assert 'forebay_worker_gpu_bytes{pool="image/x",worker="a"} 7.0' in text
    assert 'forebay_worker_gpu_busy{pool="image/x",worker="a"} 0.5' in text
    assert 'forebay_worker_gpu_bytes{pool="image/x",worker="b"}' not in text
