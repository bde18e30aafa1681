"""Measuring one call: wall time, CPU time and peak memory, the same way for every method."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify.engine.result import Result

MEMORY_KINDS = {
    "device": "peak of the tensors allocated on the GPU during the method's calls, weights included",
    "resident": "peak resident memory of this process during the method's calls, weights included",
    "process": "peak resident memory of this process so far, other methods included",
}


@dataclass(frozen=True)
class Trial:
    """One finished call. ``wall`` and ``cpu``: seconds of the whole call, prefill included, measured around it; ``cpu``
    adds up all threads of this process. ``memory``: peak in bytes (``Meter.memory_kind`` says of what)."""

    result: Result
    wall: float
    cpu: float
    memory: int


class Meter:
    """Times calls on ``device`` (its pending work is finished before a clock is read) and watches their memory."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.gpu = getattr(device, "type", "cpu") == "cuda"
        self.memory_kind = "device" if self.gpu else "resident" if _reset_resident_peak() else "process"

    def __call__(self, call: Callable[[], Result]) -> Trial:
        """Run ``call`` once."""
        self._reset_memory()
        self._synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self._synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Trial(result, wall, cpu, self._peak_memory())

    def _synchronize(self) -> None:
        if self.gpu:
            import torch

            torch.cuda.synchronize(self.device)

    def _reset_memory(self) -> None:
        if self.gpu:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.memory_kind == "resident":
            _reset_resident_peak()

    def _peak_memory(self) -> int:
        if self.gpu:
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        if self.memory_kind == "resident":
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            if found:
                return int(found[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _reset_resident_peak() -> bool:
    """Let Linux count this process's peak resident memory afresh; whether it does so here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return "VmHWM" in Path("/proc/self/status").read_text()


def machine(device: Any) -> dict[str, Any]:
    """What the figures depend on: processor or GPU, cores, threads, and the versions of the software beneath."""
    import torch
    import transformers

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if getattr(device, "type", "cpu") == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
