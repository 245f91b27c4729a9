"""Widgets of Slicer and CTK, made anew of Qt's own and of the real MRML scene. Their names are those of names.json."""

from __future__ import annotations

from slicer_standin.widgets import (
    checkable_node_combo_box,
    collapsible_button,
    collapsible_group_box,
    mrml_widget,
    node_combo_box,
    range_widget,
    segment_editor_widget,
    slice_view,
    slice_widget,
    slider_widget,
    sort_filter_proxy_model,
)

ALL = (
    mrml_widget.qMRMLWidget,
    sort_filter_proxy_model.qMRMLSortFilterProxyModel,
    node_combo_box.qMRMLNodeComboBox,
    checkable_node_combo_box.qMRMLCheckableNodeComboBox,
    segment_editor_widget.qSlicerSegmentEditorAbstractEffect,
    segment_editor_widget.qMRMLSegmentEditorWidget,
    slider_widget.ctkSliderWidget,
    range_widget.ctkRangeWidget,
    collapsible_button.ctkCollapsibleButton,
    collapsible_group_box.ctkCollapsibleGroupBox,
    slice_view.qMRMLSliceView,
    slice_widget.qMRMLSliceWidget,
)
