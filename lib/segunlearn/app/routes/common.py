"""What the routes share: the app, roles, uploads and JSON texts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast

from fastapi import Depends, Request, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.endpoints.user.auth import User as PlatformUser
from monailabel.interfaces.utils.app import app_instance

from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.inference_queue import Job
from segunlearn.errors import ConflictError, InvalidInputError
from segunlearn.volumes import SUFFIXES

T = TypeVar("T")

#: How often it is asked whether somebody still waits for an inference.
_LOOK_SECONDS: Final = 0.5

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


async def answer_of(
    job: Job[T], http: Request, discard: Callable[[Future[T]], None] | None = None
) -> T:
    """Wait for the queue of inferences; stop the job when its caller is gone.

    ``discard`` is called with what a stopped job may have made all the same.

    Raises
    ------
    ConflictError
        Whoever asked hung up.
    """
    answer = asyncio.wrap_future(job.future)
    try:
        while not (await asyncio.wait((answer,), timeout=_LOOK_SECONDS))[0]:
            if await http.is_disconnected():
                raise ConflictError("whoever asked for the inference is gone.")
        return await answer
    except (asyncio.CancelledError, ConflictError):
        if not job.future.done():  # nobody fetches the answer
            job.cancel()
            if discard is not None:
                job.future.add_done_callback(discard)
            answer.add_done_callback(lambda over: over.cancelled() or over.exception())
        raise


def caller_or_address(user: PlatformUser, http: Request) -> str:
    """Name by which callers take turns."""
    return caller(user) or (http.client.host if http.client else "")


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
