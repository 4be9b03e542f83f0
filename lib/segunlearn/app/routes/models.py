"""``/models``: the versions of the served model, and which of them is active."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from segunlearn.app.activation import activate
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes.common import current_app
from segunlearn.app.routes.forget import Decider, Reader
from segunlearn.app.version_list import VersionLine, lines_of
from segunlearn.records.versions import State, WeightsState

router = APIRouter(prefix="/models", tags=["Model"])

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    404: {"description": "There is no such version"},
    409: {"description": "The version may not be served, or its files were changed"},
    422: {"description": "The request is not understood"},
    503: {"description": "The store cannot be reached now"},
}

App = Annotated[SegUnlearnApp, Depends(current_app)]


class VersionOut(BaseModel):
    """One version of the model."""

    version: str
    state: State = Field(description="A candidate waits for its audit and cannot be served")
    weights_state: WeightsState = Field(description="Sealed: only a deposit holds them")
    sha256: str
    parent_sha256: str | None
    parent: str = Field(description="Name of the version it was made from; empty: random weights")
    created: str
    run_id: str
    method: str = Field(description="Of the unlearning that made it; empty: a training")
    level: str = Field(description="Assurance level that this unlearning was to reach")
    details: dict[str, Any]


class ModelOut(BaseModel):
    """The served model and its versions, oldest first."""

    model: str
    active: str | None
    versions: list[VersionOut]


@router.get("", summary="Versions of the model", responses=_REFUSALS)
def list_versions(user: Reader, app: App) -> ModelOut:
    """List the versions with their states, and say where their weights are."""
    found = lines_of(app.model.registry, app.records)
    active = next((line.version for line in found if line.state == "active"), None)
    return ModelOut(model=app.model.name, active=active, versions=[_out(line) for line in found])


@router.post("/{version}/activate", summary="Serve another version", responses=_REFUSALS)
def activate_version(
    version: Annotated[str, Path(pattern="^v[0-9]{4,12}$")], user: Decider, app: App
) -> VersionOut:
    """Serve another version from now on.

    One that knows what a live forget request took out of service is refused.
    """
    info = activate(app.home, app.records, app.model.name, version)
    found = lines_of(app.model.registry, app.records)
    return _out(next(line for line in found if line.version == info.version))


def _out(line: VersionLine) -> VersionOut:
    return VersionOut.model_validate(line.to_json())
