"""``/adapters``: the site adapters of the served model, and which of them serves each site."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from segunlearn.app.adapter_list import AdapterControl, AdapterLine
from segunlearn.app.adapter_store import AdapterState
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.routes.common import current_app
from segunlearn.app.routes.forget import Decider, Reader

router = APIRouter(prefix="/adapters", tags=["Sites"])

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "Not signed in"},
    403: {"description": "The role does not allow it"},
    404: {"description": "There is no such site or adapter"},
    409: {"description": "The adapter may not serve, or its files were changed"},
    422: {"description": "The request is not understood"},
    503: {"description": "The store cannot be reached now"},
}

App = Annotated[SegUnlearnApp, Depends(current_app)]
SiteKeyPath = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="Key of the site's folder")]


class AdapterOut(BaseModel):
    """One adapter of a site."""

    site: str
    key: str
    version: str
    state: AdapterState
    serves: bool = Field(description="It segments the images of its site now")
    sha256: str
    base: str = Field(description="SHA-256 of the weights it was made for")
    created: str
    run_id: str
    here: bool = Field(description="False: forgetting destroyed its tensors")
    why: str = Field(description="Why it was retired")
    about: dict[str, Any] = Field(description="How it was made; studies by pseudonym")


class AdaptersOut(BaseModel):
    """Adapters of the served model, by site, each site's oldest first."""

    model: str
    adapters: list[AdapterOut]
    damaged: list[str] = Field(description="Sites with a record that cannot be read, and why")


class ServedOut(BaseModel):
    """What serves a site now."""

    key: str
    adapter: AdapterOut | None = Field(description="null: the base")


@router.get("", summary="Site adapters", responses=_REFUSALS)
def list_adapters(user: Reader, app: App) -> AdaptersOut:
    """List the adapters of all sites, and say which of them serve."""
    control = _control(app)
    found = [_out(line) for line in control.lines()]
    return AdaptersOut(model=app.model.name, adapters=found, damaged=control.damaged())


@router.post("/{key}/{version}/activate", summary="Serve an adapter", responses=_REFUSALS)
def activate_adapter(
    key: SiteKeyPath,
    version: Annotated[str, Path(pattern="^v[0-9]{4,12}$")],
    user: Decider,
    app: App,
) -> AdapterOut:
    """Segment the images of a site with this adapter from now on.

    One that a forget request retired, or that was made for other weights, is refused.
    """
    return _out(_control(app).activate(key, version))


@router.post("/{key}/rollback", summary="Serve the adapter before", responses=_REFUSALS)
def roll_back(key: SiteKeyPath, user: Decider, app: App) -> ServedOut:
    """Serve the adapter before the current one, or the base where there is none before."""
    line = _control(app).roll_back(key)
    return ServedOut(key=key, adapter=_out(line) if line is not None else None)


def _control(app: SegUnlearnApp) -> AdapterControl:
    return AdapterControl(app.home, app.model.name)


def _out(line: AdapterLine) -> AdapterOut:
    return AdapterOut.model_validate(line.to_json())
