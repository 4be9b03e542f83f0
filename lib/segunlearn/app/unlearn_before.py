"""The version that knew what was forgotten, opened for one mask, to see what was before.

Until a purge the deposit holds it. It is opened in memory, for a decision of an administrator, and
the trail says so; nothing of it is kept, so that a purge leaves nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_restore import deposits_of, original_of
from segunlearn.errors import ConflictError
from segunlearn.records.trail import TrailEntry
from segunlearn.records.versions import VersionInfo, VersionRegistry

if TYPE_CHECKING:
    from segunlearn.inference import Segmenter


def open_before(
    home: Home,
    records: Records,
    model: str,
    request_id: str,
    *,
    actor: str,
    role: str,
    device: str = "auto",
) -> tuple[VersionInfo, Segmenter]:
    """Open the version that served before a forget request was fulfilled.

    Parameters
    ----------
    home, records
        Of the installation.
    model
        Name in the registry.
    request_id
        A fulfilled forget request.
    actor, role
        Who looks, for the trail.
    device
        ``auto``, ``cpu`` or ``cuda:0``.

    Raises
    ------
    ConflictError
        The request is not fulfilled, was purged, or a purge destroyed a key of its deposit; or no
        version in service was replaced for it.
    NotFoundError
        There is no such request, or no deposit of it.
    IntegrityError
        The deposit is damaged.
    """
    from segunlearn.inference import Segmenter  # loads torch
    from segunlearn.networks import ModelConfig, network_from_bytes

    request = records.forget_set.get(request_id)
    if request.state == "purged":
        raise ConflictError(
            f"forget request {request_id} was purged: the versions that knew what it names were "
            "destroyed, and no mask of theirs can be made any more."
        )
    if request.state != "fulfilled":
        raise ConflictError(
            f"forget request {request_id} is {request.state}: no version is kept out of service "
            "for it. Masks before and after are there while it is fulfilled."
        )
    registry, finisher = VersionRegistry(home.model(model)), Finisher(home, records)
    for deposit in deposits_of(finisher, model, request):
        info = original_of(records, registry, deposit)
        if info is None:
            continue
        records.trail.append(
            TrailEntry("look_back", actor, role, kind="request", what=request_id, note=info.version)
        )
        config = ModelConfig.from_json(info.config)
        network = network_from_bytes(finisher.opened(deposit, info.version), config, info.sha256)
        return info, Segmenter(network, config, device)
    raise ConflictError(
        f"no version in service was replaced for forget request {request_id}: what is served now "
        "served before, too."
    )
