"""The form of the Segment widget for a model that the user imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cdal_engine.weights import DEFAULT, shipped, user_folder
from napari_cdal.segment_widget import SegmentWidget

from .test_segment_widget import run


@pytest.fixture
def imported(parity_data: Path) -> str:
    """Name of an imported model of the user's, without a discriminator."""
    from cdal_engine.published import import_model

    files = (parity_data / f"rgb_tiny_{part}" for part in ("netG.pth", "parameters.json"))
    return import_model(*files, name="mine").name


def test_an_imported_model_is_offered_with_what_it_can_do(
    make_napari_viewer: Callable[..., Any], imported: str, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    broken = user_folder() / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"halloo": 1}')
    viewer = make_napari_viewer()
    viewer.add_image(tile, name="tile", rgb=True)
    widget = SegmentWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Segment")
    form = widget.form
    assert form.model.choices == (*shipped(), imported)
    form.model.value = imported
    assert form.steps.choices == (4,)
    assert form.samples.enabled
    assert not form.wanted["attention"].enabled
    assert "depends on its tiles" in form.model.tooltip
    form.samples.value = 1
    assert "objects in" in run(widget, qtbot)
    assert [layer.name for layer in viewer.layers][1:] == [
        f"{what}: tile, {imported}" for what in ("uncertainty", "probability", "labels")
    ]
    form.model.value = DEFAULT
    assert set(form.steps.choices) == {0, 4}
    assert form.steps.value == 4
    assert form.wanted["attention"].enabled
