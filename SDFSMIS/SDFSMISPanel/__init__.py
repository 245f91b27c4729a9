"""The panel of 3D Slicer: the widgets of the workbench."""
