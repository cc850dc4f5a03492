"""Shared fixtures: the real data beside the repository, and the engine's independence of Qt."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from cdal_engine.config import NetworkConfig

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of several processes, and what it starts, has a core: threads that share one wait for
    # each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test measures time, neither of an example nor of making examples, however busy the machine.
settings.register_profile("cdal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cdal")

TESTS = Path(__file__).parent
GUI_MODULES = frozenset({"magicgui", "napari", "npe2", "qtpy", "superqt", "vispy"})


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with `monuseg/train`, `slides`, ...: `$CDAL_SHARED/data`, or `../shared/data`.

    Tests that need it are skipped where it is not there.
    """
    shared = Path(os.environ.get("CDAL_SHARED") or TESTS.parents[1] / "shared")
    data = shared / "data"
    if not data.is_dir():
        pytest.skip(f"no data at {data}; set CDAL_SHARED to the folder that holds data/")
    return data


@pytest.fixture(scope="session")
def parity_data(shared_data: Path) -> Path:
    """Folder `parity` beside `data`: numbers that the published networks gave."""
    folder = shared_data.parent / "parity"
    if not folder.is_dir():
        pytest.skip(f"no parity vectors at {folder}")
    return folder


@pytest.fixture(autouse=True)
def _models_of_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Start every test without models of the user's own."""
    monkeypatch.setenv("CDAL_MODELS", str(tmp_path_factory.mktemp("own") / "models"))


@pytest.fixture(autouse=True)
def _engine_stays_headless(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an engine or CLI test that makes anything load Qt or napari."""
    before = GUI_MODULES & sys.modules.keys()
    yield
    if request.path.relative_to(TESTS).parts[0] != "plugin":
        assert GUI_MODULES & sys.modules.keys() == before


@pytest.fixture(scope="session")
def tiny_network() -> NetworkConfig:
    """The smallest network that has all parts."""
    from cdal_engine.config import NetworkConfig

    return NetworkConfig(
        widths=(8, 12),
        denoiser_width=12,
        denoiser_blocks=1,
        detail_width=8,
        latent_dim=4,
        discriminator_widths=(8, 8, 8),
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_network: NetworkConfig) -> Path:
    """Folder of a small nuclei model at 0.25 µm/px with random weights; T = 2."""
    import torch

    from cdal_engine.config import DiffusionConfig, ModelConfig
    from cdal_engine.model import Model, Networks

    config = ModelConfig(network=tiny_network, diffusion=DiffusionConfig(steps=2))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    Model.save(folder, config, Networks(config))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process alone have windows where pytest-xdist runs several: they share a keyboard."""
    for item in items:
        if "plugin" in item.path.relative_to(TESTS).parts:
            item.add_marker(pytest.mark.xdist_group("windows"))
