"""Menus of layers that follow the viewer's list of them."""

from __future__ import annotations

from magicgui.widgets import ComboBox
from napari.layers import Layer

__all__ = ["refresh"]


def refresh(menu: ComboBox, *_: object) -> None:
    """Offer what there is now, in its order; a layer that was renamed stays chosen.

    magicgui alone goes by names: it would choose the first layer instead of a renamed one, and put
    what is new at the end.
    """
    chosen, name = menu.value, menu.current_choice
    with menu.changed.blocked():
        menu.native.clear()
        menu.reset_choices()
        if isinstance(chosen, Layer) and any(chosen is layer for layer in menu.choices):
            menu.value = chosen
        elif menu.native.findText(name or "") > 0:
            menu.native.setCurrentText(name)
    if menu.value is not chosen:
        menu.changed.emit(menu.value)
