"""Settings of every test run: one thread, no network, no traces in the user's cache folder."""

import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("RAMIFY_CACHE", str(Path(tempfile.gettempdir()) / "ramify-tests"))

from hypothesis import HealthCheck, settings

# Examples differ from run to run on a developer's machine, not in continuous integration (CI is set there).
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("local", **common)
settings.register_profile("ci", derandomize=True, **common)
settings.load_profile("ci" if os.environ.get("CI") else "local")

ROOT = Path(__file__).parent.parent


def pytest_configure() -> None:
    import torch

    torch.set_num_threads(1)
