"""The panel of 3D Slicer: its logic, which knows scene and client but no widgets, and its widgets."""
