"""``/info``, ``/activelearning``, ``/model``, ``/logs`` and ``/reload``."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import FileResponse, PlainTextResponse
from monailabel.config import settings
from starlette.concurrency import run_in_threadpool

from segunlearn.app.activelearning import proposals
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes.common import (
    Admin,
    User,
    answer_of,
    caller,
    caller_or_address,
    current_app,
)
from segunlearn.errors import ForbiddenError, NotFoundError

router = APIRouter()


@router.get("/info/", summary="What the app offers", tags=["App"])
def info(user: User) -> dict[str, Any]:
    """Models, trainers, strategies, scoring methods, progress and numbers of studies."""
    return current_app().info()


@router.post(
    "/activelearning/{strategy}",
    summary="Next image",
    tags=["ActiveLearning"],
    responses={503: {"description": "Too many inferences wait"}},
)
async def next_sample(
    http: Request,
    strategy: str,
    user: User,
    params: Annotated[dict[str, Any] | None, Body()] = None,
) -> dict[str, Any]:
    """Choose the next image to annotate; empty when none is left.

    A study with a live forget request is never proposed. What runs the model waits with the
    inferences; ``seconds`` of it are 30 at most, and it stops when its caller hangs up.
    """
    app, options = current_app(), dict(params or {})
    name = caller(user)

    def choose(stop: Callable[[], bool]) -> dict[str, Any]:
        return _next_sample(app, strategy, options, name, stop)

    if not app.uses_model(strategy):
        return await run_in_threadpool(choose, lambda: False)
    return await answer_of(app.submit_inference(choose, caller_or_address(user, http)), http)


def _next_sample(
    app: SegUnlearnApp,
    strategy: str,
    options: dict[str, Any],
    name: str | None,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    sample = app.next_sample({**options, "strategy": strategy, "cancel": stop})
    if not sample:
        return {}
    store, image_id = app.datastore(), sample["id"]
    client = str(options.get("client_id") or name or "")[:200]
    noted = {
        **proposals(store.infos.image(image_id)),
        strategy: {"ts": int(time.time()), "client_id": client},
    }
    store.update_image_info(image_id, {"strategy": noted})
    return {**sample, **store.get_image_info(image_id), "id": image_id, "path": sample["path"]}


@router.get("/model/{model}", summary="Download the active weights", tags=["Model"])
def download_model(model: str, user: Admin) -> FileResponse:
    """Send the weights of the active version as safetensors."""
    served = current_app().served_model(model)
    served.check()
    version = served.version()
    return FileResponse(
        version.weights,
        media_type="application/octet-stream",
        filename=f"{model}-{version.version}.safetensors",
    )


@router.get("/model/info/{model}", summary="Digest of the active weights", tags=["Model"])
def model_info(model: str, user: Admin) -> dict[str, Any]:
    """Digest, time and version of the active weights."""
    app = current_app()
    app.served_model(model).version()
    return app.model_info(model)


@router.put("/model/{model}", summary="Upload weights: not allowed", tags=["Model"])
def update_model(model: str, user: Admin) -> None:
    """Refuse: the ledger must know what every served version was trained on."""
    current_app().served_model(model)
    raise ForbiddenError(
        "weights are never uploaded: the ledger could not say which studies shaped them. Train a "
        "version here."
    )


@router.delete("/model/{model}", summary="Delete weights: not allowed", tags=["Model"])
def delete_model(model: str, user: Admin) -> None:
    """Refuse: versions are retired, and the ledger keeps their record."""
    current_app().served_model(model)
    raise ForbiddenError(
        "versions are not deleted from here: other versions and the ledger refer to them. "
        "Activate another version instead."
    )


@router.get("/logs/", summary="Last lines of the log", tags=["Others"])
def logs(user: Admin, lines: int = 300) -> PlainTextResponse:
    """Send the end of the server's log as plain text."""
    path = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
    if not path.is_file():
        raise NotFoundError("the server writes no log file.")
    with path.open(encoding="utf-8", errors="replace") as file:
        return PlainTextResponse("".join(deque(file, max(1, min(lines, 10_000)))))


@router.get("/logs/gpu", summary="State of the GPUs", tags=["Others"])
def gpu_info(user: Admin) -> PlainTextResponse:
    """Send what nvidia-smi says."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise NotFoundError("this machine has no nvidia-smi, so probably no NVIDIA GPU.")
    done = subprocess.run([program], capture_output=True, text=True, timeout=30, check=False)
    return PlainTextResponse(done.stdout)


@router.post("/reload", include_in_schema=False)
def reload() -> None:
    """Refuse: a reload would build a second app without its routes."""
    raise ForbiddenError("the app is not reloaded in a running server; restart the server.")
