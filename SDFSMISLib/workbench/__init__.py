"""The workbench: what a front end does without widgets. 3D Slicer's panel and other front ends share it.

It knows the MRML scene and a backend's client, and neither Qt nor 3D Slicer's application: settings, folders and the
translation of texts are handed in. Everything is called on the main thread, but for jobs that say otherwise.
"""
