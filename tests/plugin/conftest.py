"""Layers and a docked Segment widget for the plugin's tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from npe2 import PluginManifest
from numpy.typing import NDArray

from cdal_engine.samples import HE_MPP

from .slide_results import write_results
from .test_manifest import MANIFEST

if TYPE_CHECKING:
    from cdal_engine.config import NetworkConfig


@pytest.fixture
def qtbot(qtbot: Any) -> Any:
    """As pytest-qt's, which waits five seconds: few on a busy machine."""
    qtbot.waitUntil = partial(qtbot.waitUntil, timeout=240_000)
    return qtbot


@pytest.fixture
def viewer(npe2pm: Any, make_napari_viewer: Callable[..., Any]) -> Any:
    """A viewer that knows the plugin by its manifest."""
    npe2pm.register(PluginManifest.from_file(MANIFEST))
    return make_napari_viewer()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results to be corrected."""
    return write_results(tmp_path / "slide.tif", 0)


@pytest.fixture
def tile() -> NDArray[np.uint8]:
    """A crop of the H&E sample, 96x120 RGB, that is quick to segment."""
    from napari_cdal.sample_data import he_tile

    return np.ascontiguousarray(he_tile()[0][0][200:296, 250:370])


@pytest.fixture
def skewed() -> dict[str, Any]:
    """A placement in which every part of napari's transform matters."""
    return {
        "scale": (HE_MPP, HE_MPP),
        "translate": (12.5, -40.0),
        "rotate": 30.0,
        "shear": (0.2,),
        "affine": np.array([[0.9, 0.3, 7.0], [-0.2, 1.1, 3.0], [0.0, 0.0, 1.0]]),
        "units": ("micrometer", "micrometer"),
        "axis_labels": ("y", "x"),
    }


@pytest.fixture
def docked(tiny_model: Path) -> Callable[[Any], Any]:
    """Dock a Segment widget that knows the tiny model in a viewer."""

    def dock(viewer: Any) -> Any:
        from napari_cdal.segment_widget import SegmentWidget

        widget = SegmentWidget(viewer, {"tiny": tiny_model})
        viewer.window.add_dock_widget(widget, name="Segment")
        widget.form.samples.value = 2
        return widget

    return dock


@pytest.fixture(scope="session")
def tiny_volume_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_network: NetworkConfig
) -> Path:
    """Folder of a small model of two classes in MRI slices, neighbours too; T = 2."""
    import torch

    from cdal_engine.config import DiffusionConfig, ImageConfig, ModelConfig
    from cdal_engine.model import Model, Networks

    image = ImageConfig(
        channels=1, neighbours=1, mpp=None, normalisation="percentile", mean=(), std=()
    )
    config = ModelConfig(
        target="classes",
        classes=("anterior", "posterior"),
        image=image,
        network=tiny_network,
        diffusion=DiffusionConfig(steps=2),
    )
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "mri"
    Model.save(folder, config, Networks(config))
    return folder
