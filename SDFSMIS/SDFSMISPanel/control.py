"""Control: a widget whose tooltip says what it does, or why it cannot be used now."""

from __future__ import annotations

from typing import Any

__all__ = ["Control", "bring_into_sight"]


class Control:
    """Wraps a widget of the panel. The tooltip that it has then says what it does.

    Attributes:
        widget: the widget itself.
    """

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self._purpose = widget.toolTip

    def allow(self, why_not: str = "") -> None:
        """Lets it be used, or says in its tooltip why it cannot be."""
        self.widget.enabled = not why_not
        self.widget.toolTip = why_not or self._purpose


def bring_into_sight(widget: Any) -> None:
    """Moves the scroll area that the panel lies in, if it lies in one."""
    parent = widget.parentWidget()
    while parent is not None:
        if parent.inherits("QScrollArea"):
            parent.ensureWidgetVisible(widget)
            return
        parent = parent.parentWidget()
