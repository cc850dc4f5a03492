"""The fields of the Segment widget and how they follow the chosen model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from ctypes.util import find_library
from typing import Any

from magicgui.widgets import CheckBox, ComboBox, FloatSlider, FloatSpinBox, SpinBox
from magicgui.widgets.bases import ValueWidget
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import (
    QFormLayout,
    QFrame,
    QGridLayout,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QWidget,
)

from cdal_engine.config import ModelConfig

from .results import ATTENTION_NOTE
from .settings import Preferences

__all__ = ["MPP_STEP", "VOLUME", "SegmentForm", "describe", "devices"]

MPP_STEP = 0.0001  # micrometres per pixel, to which the field rounds
VOLUME = "whole volume"  # a scope

_MAPS = (
    ("probability", "Probability", "Mean of the samples."),
    ("uncertainty", "Uncertainty", "Entropy of the mean of the samples."),
    ("attention", "Attention", f"Shows {ATTENTION_NOTE}."),
    ("samples", "Each sample", "All samples, along a slider of their own."),
    ("steps", "Each step", "The diffusion steps of each sample, x_t and x̂0, along two sliders."),
)
# Themes of napari show a slider that does not act like one that does: it loses its knob.
_IDLE = "QSlider::handle:disabled, QSlider::sub-page:disabled { background: transparent; }"
_STACKS = ("samples", "steps")  # large, and not for every day


class SegmentForm:
    """What to segment, with which model, and how.

    Parameters
    ----------
    images : callable
        Gives the layers to choose from, as (name, layer).
    scopes : callable
        Gives what of the image may be segmented, as (text, value).
    configs : mapping of str to ModelConfig
        The models to choose from, by name.
    chosen : Preferences
        What the fields start with.
    """

    def __init__(
        self,
        images: Callable[[object], list[tuple[str, Any]]],
        scopes: Callable[[object], list[tuple[str, Any]]],
        configs: Mapping[str, ModelConfig],
        chosen: Preferences,
    ) -> None:
        self._configs = dict(configs)
        self.image = ComboBox(label="Image", choices=images, tooltip="The layer to segment.")
        self.scope = ComboBox(label="Segment", choices=scopes)
        self.scope.tooltip = "All of it, what the window shows, or each shape of a Shapes layer."
        self.model = ComboBox(label="Model", choices=list(configs))
        if chosen.model in configs:
            self.model.value = chosen.model
        for i, config in enumerate(configs.values()):
            self.model.native.setItemData(i, describe(config), Qt.ItemDataRole.ToolTipRole)
        self.samples = SpinBox(label="Samples", value=chosen.samples, min=1, max=20)
        self.samples.tooltip = (
            "Answers drawn from the model and averaged; their spread is the uncertainty."
        )
        self.steps = ComboBox(label="Steps", choices=self._step_choices)
        self.steps.tooltip = "Diffusion steps of each sample; 0: one quick deterministic answer."
        self.device = ComboBox(label="Device", choices=devices())
        if chosen.device in self.device.choices:
            self.device.value = chosen.device
        self.device.tooltip = "auto: the graphics card if there is one."
        self.mpp = FloatSpinBox(label="µm per pixel", min=0, max=1e6, step=MPP_STEP)
        self.mpp.native.setSpecialValueText("unknown")
        self.mpp.tooltip = (
            "Size of the image's pixels: the layer's scale where its units are lengths, "
            "else the model's own resolution. Correct it if it is wrong."
        )
        self.seed = SpinBox(label="Seed", value=0, min=0, max=2**31 - 1)
        self.seed.tooltip = "The same seed, the same answer."
        self.wanted = {
            name: CheckBox(text=text, value=name not in _STACKS, tooltip=tooltip)
            for name, text, tooltip in _MAPS
        }
        self.threshold = FloatSlider(label="Threshold", min=0.01, max=0.99, step=0.01)
        self.threshold.tooltip = "Probability above which a pixel belongs to an object."
        self.min_area = FloatSlider(label="Smallest object", min=0, max=100, step=0.5)
        self.min_area.tooltip = "µm², or pixels where their size is unknown."
        self.threshold.enabled = self.min_area.enabled = False
        self.about = QLabel()  # what the model is for
        self.about.setWordWrap(True)
        self.about.setTextFormat(Qt.TextFormat.PlainText)
        self.model.changed.connect(self._on_model)
        self.steps.changed.connect(self._on_steps)
        self.scope.changed.connect(self._on_steps)
        self._on_model()
        self.native = _Scrolled(self._rows())

    @property
    def config(self) -> ModelConfig | None:
        """Config of the chosen model; None if there is none."""
        return self._configs.get(self.model.value)

    def add_model(self, name: str, config: ModelConfig) -> None:
        """Offer a model that was made meanwhile."""
        self._configs[name] = config
        self.model.choices = list(self._configs)

    def _rows(self) -> QFormLayout:
        rows = QFormLayout()
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in (
            self.image,
            self.scope,
            self.model,
            self.samples,
            self.steps,
            self.device,
            self.mpp,
            self.seed,
        ):
            self._add(rows, field)
            if field is self.model:
                rows.addRow(self.about)
        for field in (self.image, self.scope, self.model):  # long names must not widen the dock
            menu = field.native
            menu.setSizeAdjustPolicy(menu.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            menu.setMinimumContentsLength(10)
        boxes = QGridLayout()
        for i, box in enumerate(self.wanted.values()):
            boxes.addWidget(box.native, i // 2, i % 2)
        rows.addRow(QLabel("Add to the labels"))
        rows.addRow(boxes)
        rows.addRow(QLabel("Change the result at once"))
        for slider in (self.threshold, self.min_area):
            self._add(rows, slider)
            for groove in slider.native.findChildren(QSlider):  # a click on it moves ten steps
                groove.setPageStep(10 * groove.singleStep())
                groove.setStyleSheet(_IDLE)
        return rows

    def _add(self, rows: QFormLayout, field: ValueWidget[Any]) -> None:
        """A field with its name, for eyes, mouse and screen readers."""
        label = QLabel(field.label)
        label.setToolTip(field.tooltip)
        label.setBuddy(field.native)
        field.native.setAccessibleName(field.label)
        rows.addRow(label, field.native)

    def show_cut(self, config: ModelConfig, enabled: bool) -> None:
        """Have the sliders show what labels are made with; they act where there is a result."""
        for slider in (self.threshold, self.min_area):
            slider.enabled = enabled and config.target != "classes"
        with self.threshold.changed.blocked(), self.min_area.changed.blocked():
            self.threshold.value = config.decode.threshold
            self.min_area.max = max(100.0, config.decode.min_area)
            self.min_area.value = config.decode.min_area

    def _step_choices(self, _: object = None) -> list[tuple[str, int]]:
        trained = self.config.diffusion.steps if self.config else 0
        preview = (
            [("0 (preview)", 0)] if self.config is None or self.config.network.has_head else []
        )
        return [*preview, (str(trained), trained)]

    def _on_model(self, *_: object) -> None:
        if self.config is not None:
            self.steps.reset_choices()
            self.steps.value = self.config.diffusion.steps
            self.model.tooltip = describe(self.config)
            self.about.setText(describe(self.config))
            if not self.threshold.enabled:  # else they are of a result
                self.show_cut(self.config, enabled=False)
            self.mpp.enabled = self.config.image.mpp is not None
            self._on_steps()  # the same steps of another model

    def _on_steps(self, *_: object) -> None:
        """One deterministic pass has no samples; it and volumes have no attention."""
        sampled = self.steps.value != 0
        looked_at = self.config is None or self.config.network.has_discriminator
        looked_at = looked_at and self.scope.value != VOLUME
        for field in (self.samples, self.seed):
            field.enabled = sampled
        for name in _STACKS:
            self.wanted[name].enabled = sampled
        self.wanted["attention"].enabled = sampled and looked_at


class _Scrolled(QScrollArea):
    """A form as wide as it must be, which scrolls when there is no height for it."""

    def __init__(self, rows: QFormLayout) -> None:
        super().__init__()
        self._form = QWidget()
        self._form.setLayout(rows)
        self.setWidget(self._form)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Maximum)
        self.setMinimumHeight(80)

    def sizeHint(self) -> QSize:
        """Ask for the whole form, and the frame that the theme draws around it."""
        frame = 2 * self.frameWidth()
        return self._form.sizeHint() + QSize(frame, frame)

    def showEvent(self, event: QShowEvent | None) -> None:
        """Learn the width now: the theme, known only when shown, adds to it."""
        bar = self.verticalScrollBar()
        room = bar.sizeHint().width() if bar is not None else 0
        self.setMinimumWidth(self._form.minimumSizeHint().width() + room)
        super().showEvent(event)


def describe(config: ModelConfig) -> str:
    """Say in a line what a model is for."""
    what = {
        "nuclei": f"each {config.classes[0]} by itself",
        "binary": f"{config.classes[0]}, in connected pieces",
        "classes": ", ".join(config.classes),
    }[config.target]
    kind = {1: "grayscale", 3: "RGB"}[config.image.channels]
    at = f" at {config.image.mpp:g} µm per pixel" if config.image.mpp else ""
    tile = config.network.fixed_tile
    depends = f" Its answer depends on its tiles of {tile} x {tile} pixels." if tile else ""
    return f"Finds {what} in {kind} images{at}; {config.diffusion.steps} steps.{depends}"


def devices() -> list[str]:
    """Devices that this computer may have, judged without loading torch."""
    names = ["auto", "cpu"]
    if find_library("nvcuda" if sys.platform == "win32" else "cuda"):
        names.append("cuda")
    if sys.platform == "darwin":
        names.append("mps")
    return names
