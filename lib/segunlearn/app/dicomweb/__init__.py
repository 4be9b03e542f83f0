"""DICOMweb over a folder of DICOM files, under ``/dicomweb`` (PS3.18).

``search`` is QIDO-RS, ``retrieve`` WADO-RS, ``rendered`` its pictures, ``store`` STOW-RS; ``media``
and ``frames`` hold what they share. Handlers are plain functions, which FastAPI runs in threads:
reading a disk never blocks the event loop.
"""

from fastapi import APIRouter

from segunlearn.app.dicomweb import rendered, retrieve, search, store


def routers() -> list[APIRouter]:
    """Return the routers to mount, in any order."""
    return [search.router, retrieve.router, rendered.router, store.router]
