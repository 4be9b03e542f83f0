"""``/session``: an image uploaded once, for several inferences."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, UploadFile
from fastapi.responses import FileResponse

from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes.common import User, current_app
from segunlearn.app.upload_sessions import SessionInfo, UploadSessions
from segunlearn.dicom.deflated import refuse_deflated
from segunlearn.errors import InvalidInputError, NotFoundError
from segunlearn.volumes import SUFFIXES

router = APIRouter(prefix="/session", tags=["Session"])

#: Files of one upload; a series of single-frame images has some hundreds.
MAX_FILES = 5000


def _sessions(app: SegUnlearnApp) -> UploadSessions:
    sessions: UploadSessions | None = app.sessions()
    if sessions is None:
        raise NotFoundError("sessions are switched off (MONAI_LABEL_SESSIONS).")
    return sessions


def _session(app: SegUnlearnApp, session_id: str, update: bool = False) -> SessionInfo:
    try:
        checked = str(uuid.UUID(session_id))
    except ValueError:
        checked = ""
    found = _sessions(app).get(checked, touch=update) if checked else None
    if found is None:
        raise NotFoundError(
            f"there is no session {session_id!r:.80}; it may have expired. Upload the image again."
        )
    return found


def session_image(app: SegUnlearnApp, session_id: str) -> Path:
    """File, or folder of DICOM files, of a session.

    Raises
    ------
    NotFoundError
        There is no such session.
    """
    return Path(_session(app, session_id, update=True).image)


@router.put("/", summary="Create a session with an image", form_limits={"max_files": MAX_FILES})
def create_session(
    user: User,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> dict[str, Any]:
    """Keep one volume file, or the DICOM files of one series, for a while."""
    if uncompress:
        raise InvalidInputError(
            "uncompress: archives are not unpacked here. Upload one volume file, or the DICOM "
            "files of one series."
        )
    if not 1 <= len(files) <= MAX_FILES:
        raise InvalidInputError(f"upload 1 to {MAX_FILES} files, not {len(files)}.")
    app = current_app()
    sessions = _sessions(app)
    folder = Path(tempfile.mkdtemp(prefix="session-", dir=app.home.scratch()))
    try:
        names = [_plain_name(upload, i) for i, upload in enumerate(files)]
        single = len(files) == 1 and names[0].endswith(SUFFIXES)
        for position, (upload, name) in enumerate(zip(files, names, strict=True)):
            target = folder / (name if single else f"{position:05d}.dcm")
            if not single:
                refuse_deflated(upload.file)
            with target.open("xb") as file:
                shutil.copyfileobj(upload.file, file, 1 << 20)
        data = folder / names[0] if single else folder
        info = sessions.add(data, expiry)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"session_id": info.name, "session_info": info.to_json()}


@router.get("/{session_id}", summary="Get a session, or its image")
def get_session(session_id: str, user: User, update_ts: bool = False, image: bool = False) -> Any:
    """Return what is known of a session."""
    info = _session(current_app(), session_id, update_ts)
    if not image:
        return info.to_json()
    path = Path(info.image)
    if path.is_dir():
        raise InvalidInputError("the session holds several files; only single files are sent back.")
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


@router.delete("/{session_id}", summary="Delete a session")
def remove_session(session_id: str, user: User) -> dict[str, Any]:
    """Delete a session and its image."""
    app = current_app()
    info = _session(app, session_id)
    _sessions(app).remove(info.name)
    return info.to_json()


def _plain_name(upload: UploadFile, position: int) -> str:
    """Return a name of ours that keeps only the ending of the client's."""
    name = (upload.filename or "").lower()
    suffix = next((s for s in SUFFIXES if name.endswith(s)), ".dcm")
    return f"image{position:05d}{suffix}"
