"""What napari finds of the plugin before any of it runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from npe2 import PluginManifest

import napari_cdal
from cdal_engine.samples import HE_MPP
from napari_cdal.sample_data import he_tile

MANIFEST = Path(napari_cdal.__file__).with_name("napari.yaml")


def test_manifest_is_valid_and_all_it_names_can_be_imported() -> None:
    manifest = PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert manifest.name == "napari-cdal"
    assert [item.command for item in manifest.contributions.menus["napari/layers/segment"]] == [
        widget.command for widget in manifest.contributions.widgets
    ]


@pytest.mark.parametrize("module", ["napari_cdal", "napari_cdal.worker", "napari_cdal.results"])
def test_import_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gui
def test_opening_the_widget_loads_no_torch() -> None:
    code = (
        "import sys; from napari.components import ViewerModel; from qtpy.QtWidgets import "
        "QApplication; app = QApplication([]); from napari_cdal.segment_widget import "
        "SegmentWidget; widget = SegmentWidget(ViewerModel()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sample_is_rgb_in_micrometres() -> None:
    ((pixels, arguments, kind),) = he_tile()
    assert (pixels.shape, pixels.dtype, kind) == ((512, 512, 3), np.uint8, "image")
    assert arguments["scale"] == (HE_MPP, HE_MPP)
    assert arguments["rgb"]
