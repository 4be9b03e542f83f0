"""Everything of the SegUnlearn module but its entry in 3D Slicer.

From the bottom up, each given what it works with:

- ``signals``, ``problems``, ``multipart``: plain Python;
- ``transport``, ``api``: requests that never block, and one method for each route;
- ``identity``, ``hierarchy``, ``segmentation``, ``dicom_browser``: the scene;
- ``session``, ``study``, ``forget_set``, ``runs``, ``evidence``, ``site``, ``masks``: what the
  panel knows and does, without any widget;
- ``parts``, ``widget``: what is seen.

Only what works alike in Slicer's PythonQt and in PySide6 is used of Qt, see ``idioms``.
"""
