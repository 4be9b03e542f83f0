"""``/train``, ``/scoring`` and ``/batch/infer``: work that runs in a child process."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, HTTPException, Request
from monailabel.endpoints.user.auth import User as PlatformUser

from segunlearn.app import background
from segunlearn.app.routes.common import Admin, Annotator, User, caller, current_app
from segunlearn.app.security import witness

router = APIRouter()

Parameters = Annotated[dict[str, Any] | None, Body()]

#: What people call the kinds of tasks.
_TITLES = {"train": "Train", "scoring": "Scoring", "batch_infer": "Batch Infer"}


def _status(kind: str, every: bool, running: bool) -> Any:
    if every:
        found: Any = background.tasks(kind)
    else:
        found = background.current(kind)
        if running and (found is None or found["status"] != "RUNNING"):
            raise HTTPException(404, f"No {_TITLES[kind]} task is running.")
    if not found:
        raise HTTPException(404, f"No {_TITLES[kind]} task was started since the server runs.")
    return found


def _start(kind: str, request: dict[str, Any], enqueue: bool) -> dict[str, Any]:
    if background.is_open(kind) and not enqueue:
        raise HTTPException(
            429,
            f"A {_TITLES[kind]} task is already running. Wait, stop it (DELETE), or add "
            "?enqueue=true.",
        )
    return background.start(kind, request)


@router.get("/train/", summary="Status of the training", tags=["Train"])
def train_status(user: User, all: bool = False, check_if_running: bool = False) -> Any:
    """Return the running task, else the last one; after a restart, what the store knows of it."""
    if not all and not check_if_running and background.current("train") is None:
        last = current_app().last_run_as_task("train")
        if last is not None:
            return last
    return _status("train", all, check_if_running)


@router.post("/train/", summary="Start every ordinary training", tags=["Train"], deprecated=True)
def train_all(
    user: Admin, asking: Request, params: Parameters = None, run_sync: bool = False
) -> dict[str, Any]:
    """Start the trainings that need no further decision; others are never started from here.

    ``params`` may hold one object per trainer, as OHIF's "Update Model" sends, or plain options.
    """
    app = current_app()
    result: dict[str, Any] = {}
    for model in app.ordinary_trainers():
        own = (params or {}).get(model)
        asked = own if isinstance(own, dict) else _plain(params)
        request = app.train_request(model, _signed(asked, user))
        if run_sync:
            witness.began(asking)
            result[model] = {"result": app.train(request), "detail": None}
        elif background.is_open("train"):
            result[model] = {"result": None, "detail": "A Train task is already running."}
        else:
            result[model] = {"result": background.start("train", request), "detail": None}
    return result


@router.post("/train/{model}", summary="Start a training", tags=["Train"])
def train(
    model: str,
    user: Admin,
    asking: Request,
    params: Parameters = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """Train a new version of a model on the finished labels; see ``/info`` for the options.

    The model ``unlearn`` takes approved forget requests out of the served model: a dry run, which
    only plans, unless ``dry_run`` is false. ``site_adapt`` fits the served model to a site, and
    ``meta_train`` trains a version that is adapted in a few steps: they only plan, unless
    ``adapt_now`` or ``meta_train_now`` is true.

    The model is the one of the URL, whatever the body says. Unknown options are ignored, because
    stock clients send other trainers' options along; ``train_ds`` and ``val_ds`` are refused.
    """
    app = current_app()
    request = app.train_request(model, _signed(params, user))
    if run_sync:
        witness.began(asking)
        return app.train(request)
    return _start("train", request, enqueue)


@router.delete("/train/", summary="Stop the training", tags=["Train"])
def train_stop(user: Admin) -> Any:
    """Stop the running and the waiting trainings and unlearnings; the version in service stays.

    An unlearning is given some seconds to undo what it did; one that has passed its audit is
    published all the same.
    """
    return current_app().cancel_runs("train", lambda seconds: background.stop("train", seconds))


@router.get("/scoring/", summary="Status of the scoring", tags=["Scoring"])
def scoring_status(user: User, all: bool = False, check_if_running: bool = False) -> Any:
    """Return the running task, else the last one."""
    return _status("scoring", all, check_if_running)


@router.post("/scoring/", summary="Run every scoring", include_in_schema=False)
def scoring_all(
    user: Annotator, params: Parameters = None, run_sync: bool = False
) -> dict[str, Any]:
    """Run every scoring method."""
    app, result = current_app(), {}
    for method in app.scoring_methods():
        own = (params or {}).get(method)
        request = app.scoring_request(method, own if isinstance(own, dict) else _plain(params))
        done = app.scoring(request) if run_sync else background.start("scoring", request)
        result[method] = {"result": done, "detail": None}
    return result


@router.post("/scoring/{method}", summary="Run a scoring", tags=["Scoring"])
def scoring(method: str, user: Annotator, params: Parameters = None, run_sync: bool = False) -> Any:
    """Compare labels of two tags; the result is noted on the images."""
    app = current_app()
    request = app.scoring_request(method, params or {})
    return app.scoring(request) if run_sync else _start("scoring", request, False)


@router.delete("/scoring/", summary="Stop the scoring", tags=["Scoring"])
def scoring_stop(user: Annotator) -> Any:
    """Stop the running and the waiting scorings."""
    return background.stop("scoring")


@router.get("/batch/infer", summary="Status of the batch inference", tags=["Infer"])
def batch_status(user: User, all: bool = False, check_if_running: bool = False) -> Any:
    """Return the running task, else the last one."""
    return _status("batch_infer", all, check_if_running)


@router.post("/batch/infer/{model}", summary="Segment many images", tags=["Infer"])
def batch_infer(
    model: str,
    user: Admin,
    images: Literal["all", "labeled", "unlabeled"] = "all",
    params: Parameters = None,
    run_sync: bool = False,
) -> Any:
    """Segment images and keep the masks as labels tagged ``original`` (or ``label_tag``)."""
    app = current_app()
    request = app.batch_request(model, images, params or {})
    return app.batch_infer(request) if run_sync else _start("batch_infer", request, False)


@router.delete("/batch/infer", summary="Stop the batch inference", tags=["Infer"])
def batch_stop(user: Admin) -> Any:
    """Stop the running and the waiting batch inferences."""
    return background.stop("batch_infer")


def _signed(params: dict[str, Any] | None, user: PlatformUser) -> dict[str, Any]:
    """Who asks is who signed in, whatever the client says of itself."""
    name = caller(user)
    return {**(params or {}), **({"client_id": name} if name else {})}


def _plain(params: dict[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (params or {}).items() if not isinstance(v, dict)}
