"""What the DICOMweb routes share: the archive, roles, errors and addresses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from segunlearn.dicom.archive import Archive
from segunlearn.dicom.folder import FolderClient
from segunlearn.dicom.identifiers import validate_uid
from segunlearn.errors import NotFoundError, SegUnlearnError

logger = logging.getLogger(__name__)

PREFIX = "/dicomweb"
DICOM_JSON = "application/dicom+json"

reader = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


class SentenceRoute(APIRoute):
    """A route whose expected errors are answered with their status and their sentence."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except SegUnlearnError as error:
                return JSONResponse({"detail": str(error)}, status_code=error.http_status)

        return answer


def current_archive() -> Archive | None:
    """Return the DICOM archive of the app that serves now; None for a folder of other files."""
    from monailabel.interfaces.utils.app import app_instance

    archive = getattr(app_instance().datastore(), "archive", None)
    return archive if isinstance(archive, Archive) else None


def current_client(archive: Annotated[Archive | None, Depends(current_archive)]) -> FolderClient:
    """Return the folder of DICOM files behind the archive.

    Raises
    ------
    NotFoundError
        The studies are not a folder of DICOM files.
    """
    client = archive.client if archive is not None else None
    if not isinstance(client, FolderClient):
        where = "a PACS; ask it, or use /proxy/dicom" if archive else "files that are not DICOM"
        raise NotFoundError(f"there is no embedded DICOM archive: the studies are {where}.")
    return client


Client = Annotated[FolderClient, Depends(current_client)]


def make_router(**options: Any) -> APIRouter:
    """Make a router below ``/dicomweb``."""
    return APIRouter(prefix=PREFIX, tags=["DICOMweb"], route_class=SentenceRoute, **options)


def study_uid(study: str) -> str:
    """Check a StudyInstanceUID of the path."""
    return validate_uid(study, what="StudyInstanceUID", strict=False)


def series_uid(series: str) -> str:
    """Check a SeriesInstanceUID of the path."""
    return validate_uid(series, what="SeriesInstanceUID", strict=False)


def instance_uid(instance: str) -> str:
    """Check a SOPInstanceUID of the path."""
    return validate_uid(instance, what="SOPInstanceUID", strict=False)


StudyUID = Annotated[str, Depends(study_uid)]
SeriesUID = Annotated[str, Depends(series_uid)]
InstanceUID = Annotated[str, Depends(instance_uid)]


def root(request: Request) -> str:
    """Address of the DICOMweb service as the caller sees it."""
    return str(request.base_url).rstrip("/") + PREFIX


def address(request: Request, study: str, series: str = "", instance: str = "") -> str:
    """Address of a study, series or instance (PS3.18 section 10.4.1)."""
    path = f"{root(request)}/studies/{study}"
    if series:
        path += f"/series/{series}"
    return f"{path}/instances/{instance}" if instance else path
