"""Menus of layers that follow the viewer's list of them."""

from __future__ import annotations

from magicgui.widgets import ComboBox
from napari.layers import Layer

__all__ = ["refresh"]


def refresh(menu: ComboBox) -> None:
    """Offer the layers there are now; a layer that was renamed stays chosen.

    magicgui alone goes by names, and would choose the first layer instead of a renamed one.
    """
    chosen = menu.value
    with menu.changed.blocked():
        menu.reset_choices()
        if isinstance(chosen, Layer) and any(chosen is layer for layer in menu.choices):
            menu.value = chosen
    if menu.value is not chosen:
        menu.changed.emit(menu.value)
