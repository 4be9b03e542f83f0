"""``/infer``: segment one image; results as NIfTI, NRRD, DICOM SEG or JSON."""

from __future__ import annotations

import json
import mimetypes
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.endpoints.user.auth import User as PlatformUser
from requests_toolbelt import MultipartEncoder

from segunlearn.app.application import SegUnlearnApp, asks_to_save
from segunlearn.app.marker import MARKER
from segunlearn.app.routes.common import (
    User,
    answer_of,
    caller,
    caller_or_address,
    current_app,
    json_object,
    save_upload,
)
from segunlearn.app.routes.forget import ANNOTATORS
from segunlearn.app.routes.session import session_image
from segunlearn.errors import ForbiddenError, InvalidInputError, NotFoundError

Output = Literal["image", "json", "all", "dicom_seg"]

router = APIRouter(prefix="/infer", tags=["Infer"])

#: What a client's ``params`` may set beside the options of the task; the model and the image come
#: from the URL alone.
_PARAMS = frozenset(
    {"result_extension", "result_dtype", "result_compress", "save_label", "label_tag", "before"}
)


@router.post("/wsi/{model}", include_in_schema=False)
@router.post("/wsi_v2/{model}", summary="Whole-slide inference: not offered")
async def infer_wsi(model: str, user: User) -> None:
    """Refuse: the app segments radiology volumes."""
    raise NotFoundError(f"model {model!r:.80} treats no whole-slide images; use /infer.")


@router.post(
    "/{model}",
    summary="Segment an image",
    response_class=Response,
    responses={
        200: {
            "content": {
                "multipart/form-data": {},
                "application/json": {},
                "application/octet-stream": {},
                "application/dicom": {},
            }
        },
        403: {
            "description": "Only administrators see what served before a forgetting; whoever may "
            "only look saves no label"
        },
        404: {"description": "No such model, image, session or forget request"},
        409: {"description": "Nothing was trained yet, or what served before was destroyed"},
        422: {"description": "The image cannot be read as one volume"},
        503: {"description": "Too many inferences wait"},
    },
)
async def infer(
    background_tasks: BackgroundTasks,
    http: Request,
    model: str,
    user: User,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: Output | None = None,
) -> Response:
    """Segment an image of the studies, of a session, or an uploaded one.

    The inference runs in the app's own threads, so that other requests, however many inferences
    wait, are answered at once. Callers take turns; an inference whose caller hangs up is stopped;
    beyond ``--conf queue`` the answer is 503, and ``Retry-After`` says when to come back.
    ``before`` in ``params``, a fulfilled forget request, asks for the mask of the version that
    served before it; administrators only, until its purge.
    """
    app = current_app()
    job = app.submit_inference(
        lambda stop: _infer(app, model, image, session_id, params, file, output, user, stop),
        caller_or_address(user, http),
    )
    response, leftovers = await answer_of(job, http, _discard)
    for path in leftovers:
        background_tasks.add_task(_remove, path)
    return response


def _infer(
    app: SegUnlearnApp,
    model: str,
    image: str,
    session_id: str,
    params: str,
    file: UploadFile | None,
    output: Output | None,
    user: PlatformUser,
    stop: Callable[[], bool],
) -> tuple[Response, list[Path]]:
    options = json_object(params, "params")
    allowed = _PARAMS | frozenset(app.infer_task(model).config())
    request: dict[str, Any] = {k: v for k, v in options.items() if k in allowed}
    request["model"], request["cancel"] = model, stop
    name = caller(user)
    request["actor"] = name or str(options.get("client_id") or "")[:200]
    request["roles"] = frozenset(user.roles)
    if asks_to_save(request) and request["roles"].isdisjoint(ANNOTATORS):
        raise ForbiddenError(
            "save_label: only annotators, reviewers and administrators save labels. Ask without "
            "it, or sign in as one."
        )
    if model == MARKER and output == "dicom_seg":
        raise InvalidInputError(f"{MARKER} segments nothing; ask for output=image.")
    leftovers: list[Path] = []
    try:
        if file is not None and file.filename:
            upload = save_upload(file, app.home.scratch())
            leftovers.append(upload)
            request["image"] = upload
        elif session_id:
            request["image"] = session_image(app, session_id)
        elif image:
            request["image"] = image
        else:
            raise InvalidInputError(
                "nothing to segment: give image=<id>, session_id=<id>, or upload a file."
            )
        if output == "dicom_seg":
            return _dicom_seg(app, request, name, leftovers), leftovers
        result = app.infer(request)
        leftovers.append(Path(result["file"]))
        return _reply(result, output), leftovers
    except BaseException:
        for path in leftovers:
            _remove(path)
        raise


def _reply(result: dict[str, Any], output: Output | None) -> Response:
    if output == "json":
        return JSONResponse(result["params"])
    path = Path(result["file"])
    mime = mimetypes.guess_type(path.name, strict=False)[0] or "application/octet-stream"
    if output == "image":
        return FileResponse(path, media_type=mime, filename=path.name)
    with path.open("rb") as content:
        message = MultipartEncoder(
            fields={
                "params": (None, json.dumps(result["params"]), "application/json"),
                "image": (path.name, content, mime),
            }
        )
        return Response(content=message.to_string(), media_type=message.content_type)


def _dicom_seg(
    app: SegUnlearnApp, request: dict[str, Any], user: str | None, leftovers: list[Path]
) -> Response:
    if not isinstance(request["image"], str):
        raise InvalidInputError(
            "output=dicom_seg needs an image of the studies: uploads have no DICOM headers to "
            "refer to. Ask for output=image."
        )
    dataset = app.infer_dicom_seg(request, user)
    with tempfile.NamedTemporaryFile(
        dir=app.home.scratch(), prefix="seg-", suffix=".dcm", delete=False
    ) as file:
        leftovers.append(Path(file.name))
        dataset.save_as(file, enforce_file_format=True)
    return FileResponse(leftovers[-1], media_type="application/dicom", filename=leftovers[-1].name)


def _discard(work: Future[tuple[Response, list[Path]]]) -> None:
    if not work.cancelled() and work.exception() is None:
        for path in work.result()[1]:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
