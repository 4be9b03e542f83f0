"""What the routes share: the app, roles, uploads and JSON texts."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import Depends, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.endpoints.user.auth import User as PlatformUser
from monailabel.interfaces.utils.app import app_instance

from segunlearn.app.application import SegUnlearnApp
from segunlearn.errors import InvalidInputError
from segunlearn.volumes import SUFFIXES

#: Who calls; each type is also the check of the role.
User = Annotated[PlatformUser, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
Annotator = Annotated[PlatformUser, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
Admin = Annotated[PlatformUser, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]


def current_app() -> SegUnlearnApp:
    """Return the app that serves now; ask at each request, never keep it."""
    return cast(SegUnlearnApp, app_instance())


def json_object(text: str | None, what: str) -> dict[str, Any]:
    """Read a JSON object that came as a form field.

    Raises
    ------
    InvalidInputError
        It is no JSON, or no object.
    """
    try:
        data = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what}: no valid JSON ({error!s:.120}).") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidInputError(f'{what}: must be a JSON object, as in {{"key": "value"}}.')
    return data


def save_upload(upload: UploadFile, folder: Path) -> Path:
    """Copy an uploaded volume into a file of our own naming; the caller deletes it.

    Raises
    ------
    InvalidInputError
        The file's ending is not one of a volume.
    """
    name = upload.filename or ".nii.gz"
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
    if suffix is None:
        raise InvalidInputError(
            f"upload {Path(name).name!r:.80}: the name must end in one of {', '.join(SUFFIXES)}."
        )
    descriptor, path = tempfile.mkstemp(suffix=suffix, prefix="upload-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            shutil.copyfileobj(upload.file, file, 1 << 20)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path)


def caller(user: PlatformUser) -> str | None:
    """Name of the person, None while authentication is off and nobody is known."""
    return user.username if settings.MONAI_LABEL_AUTH_ENABLE else None
