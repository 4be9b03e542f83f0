"""``/datastore``: images, labels and notes on them."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse

from segunlearn.app.datastores.studies import FINAL
from segunlearn.app.routes.common import (
    Admin,
    Annotator,
    User,
    caller,
    current_app,
    json_object,
    save_upload,
)
from segunlearn.app.security import witness
from segunlearn.errors import InvalidInputError, NotFoundError
from segunlearn.volumes import strip_suffix

router = APIRouter(prefix="/datastore", tags=["Datastore"])


@router.get("/", summary="List images and labels")
def datastore(
    user: User,
    output: Literal["train", "stats", "all"] | None = None,
    limit: Annotated[int | None, Query(ge=1, le=100_000)] = None,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> Any:
    """Numbers (``stats``), the cases that would be trained on (``train``), or everything.

    ``limit`` and ``offset`` take a page of ``all``, in the order of the archive; it is there before
    a long list has been read to its end.
    """
    store = current_app().datastore()
    if output == "all":
        return store.json(limit, offset)
    return store.datalist() if output == "train" else store.status()


@router.put("/", summary="Upload an image", include_in_schema=False)
@router.put("/image", summary="Upload an image")
def add_image(
    user: Annotator,
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: Annotated[str, Form()] = "{}",
) -> dict[str, Any]:
    """Add a volume to a folder of files."""
    app, info = current_app(), json_object(params, "params")
    if caller(user):
        info["user"] = caller(user)
    upload = save_upload(file, app.home.scratch())
    try:
        name = image or strip_suffix(Path(file.filename or ""))
        return {"image": app.datastore().add_image(name, str(upload), info)}
    finally:
        upload.unlink(missing_ok=True)


@router.delete("/", summary="Remove an image and its labels", include_in_schema=False)
@router.delete("/image", summary="Remove an image and its labels")
def remove_image(id: str, user: Admin, request: Request) -> dict[str, Any]:
    """Delete an image of a folder of files."""
    app = current_app()
    witness.about(request, app.records.pseudonyms.of(id))
    app.datastore().remove_image(id)
    return {}


@router.head("/image", summary="Check whether an image exists")
def check_image(image: str, user: User, check_sum: str | None = None) -> dict[str, Any]:
    """404 when there is no such image, or its file has another checksum (``SHA256:…``)."""
    path = Path(current_app().datastore().get_image_uri(image))
    if check_sum:
        algorithm, _, digest = check_sum.rpartition(":")
        with path.open("rb") as file:
            try:
                found = hashlib.file_digest(file, (algorithm or "sha256").lower()).hexdigest()
            except (ValueError, TypeError) as error:  # shake_128 wants to know how long
                raise InvalidInputError(f"check_sum: unknown digest {algorithm!r:.20}.") from error
        if found != digest.lower():
            raise NotFoundError(f"image {image!r:.80} has another checksum.")
    return {}


@router.get("/image", summary="Download an image", response_class=FileResponse)
def download_image(image: str, user: User) -> FileResponse:
    """Send the image as a file; DICOM series as NIfTI."""
    return _file(Path(current_app().datastore().get_image_uri(image)))


@router.get("/image/info", summary="Get the notes on an image")
def get_image_info(image: str, user: User) -> dict[str, Any]:
    """Return notes of clients, and what the source says."""
    return current_app().datastore().get_image_info(image)


@router.put("/image/info", summary="Change the notes on an image")
def put_image_info(
    image: str, user: Annotator, info: Annotated[str, Form()] = "{}"
) -> dict[str, Any]:
    """Merge a JSON object into the notes."""
    data = json_object(info, "info")
    if caller(user):
        data["user"] = caller(user)
    current_app().datastore().update_image_info(image, data)
    return {}


@router.put("/label", summary="Save a label")
def save_label(
    image: str,
    user: Annotator,
    label: Annotated[UploadFile, File()],
    params: Annotated[str, Form()] = "{}",
    tag: str = FINAL,
) -> dict[str, Any]:
    """Check a label map and keep it; finished ones (``final``) of DICOM studies as DICOM SEG."""
    app, info = current_app(), json_object(params, "params")
    if caller(user):
        info["user"] = caller(user)
    app.datastore().record(image)
    upload = save_upload(label, app.home.scratch())
    try:
        label_id = app.datastore().save_label(image, str(upload), tag or FINAL, info)
    finally:
        upload.unlink(missing_ok=True)
    app.on_save_label(image, label_id)
    actor = caller(user) or str(info.get("client_id") or "")[:200]
    marked = app.forget_service.mark_from_label(image, info.get("label_info"), actor)
    reply = {"image": image, "label": label_id}
    return reply if marked is None else {**reply, "forget": asdict(marked)}


@router.delete("/label", summary="Remove a label")
def remove_label(id: str, tag: str, user: Admin, request: Request) -> dict[str, Any]:
    """Remove a label."""
    app = current_app()
    witness.about(request, app.records.pseudonyms.of(id))
    app.datastore().remove_label(id, tag)
    return {}


@router.head("/label", summary="Check whether a label exists")
def check_label(tag: str, user: User, image: str = "", label: str = "") -> dict[str, Any]:
    """404 when there is no such label."""
    current_app().datastore().label_record(image or label, tag)
    return {}


@router.get("/label", summary="Download a label", response_class=FileResponse)
def download_label(label: str, tag: str, user: User) -> FileResponse:
    """Send the label map on the grid of its image."""
    return _file(Path(current_app().datastore().get_label_uri(label, tag)))


@router.get("/label/info", summary="Get the notes on a label")
def get_label_info(label: str, tag: str, user: User) -> dict[str, Any]:
    """Return notes of clients, and what the source says."""
    return current_app().datastore().get_label_info(label, tag)


@router.put("/label/info", summary="Change the notes on a label")
def put_label_info(
    label: str, tag: str, user: Annotator, info: Annotated[str, Form()] = "{}"
) -> dict[str, Any]:
    """Merge a JSON object into the notes."""
    return _put_label_info(label, tag, info, caller(user))


@router.put("/updatelabelinfo", summary="Change the notes on a label", include_in_schema=False)
def put_label_info_old(
    label: str, tag: str, user: Annotator, params: Annotated[str, Form()] = "{}"
) -> dict[str, Any]:
    """Older name of ``PUT /datastore/label/info``."""
    return _put_label_info(label, tag, params, caller(user))


@router.get("/dataset", summary="Download the labelled images as ZIP", response_class=FileResponse)
def download_dataset(
    background_tasks: BackgroundTasks, user: Annotator, limit_cases: int | None = None
) -> FileResponse:
    """Pack images and finished labels, without studies marked for forgetting."""
    path = Path(current_app().datastore().get_dataset_archive(limit_cases))
    background_tasks.add_task(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip")


def _put_label_info(label: str, tag: str, text: str, user: str | None) -> dict[str, Any]:
    data = json_object(text, "info")
    if user:
        data["user"] = user
    current_app().datastore().update_label_info(label, tag, data)
    return {}


def _file(path: Path) -> FileResponse:
    if not path.is_file():
        raise NotFoundError(f"{path.name}: the file is gone; list the studies again.")
    mime = mimetypes.guess_type(path.name, strict=False)[0] or "application/octet-stream"
    return FileResponse(path, media_type=mime, filename=path.name)
