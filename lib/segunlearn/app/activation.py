"""Which version is served: a person may choose, but not one that knows what was forgotten."""

from __future__ import annotations

from segunlearn.app.audit_files import Audits
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_journal import journals
from segunlearn.app.unlearn_reach import show_what_was_forgotten
from segunlearn.app.unlearn_settle import settle
from segunlearn.errors import ConflictError
from segunlearn.records.versions import VersionInfo, VersionRegistry


def activate(home: Home, records: Records, model: str, version: str) -> VersionInfo:
    """Serve another version.

    Parameters
    ----------
    home, records
        Of the installation.
    model
        Name in the registry.
    version
        Name or digest.

    Raises
    ------
    NotFoundError
        There is no such version.
    ConflictError
        It is retired or a candidate; it knows what a live forget request took out of service; or
        an unlearning is being published now.
    IntegrityError
        Its weights were changed.
    """
    registry = VersionRegistry(home.model(model))
    info = registry.get(version)
    if info.state == "available":
        settle(home, records)
        if any(j.model == model and j.decided for j in journals(home)):
            raise ConflictError(
                f"a version of {model!r} is being published, restored or purged. Try again in a "
                "moment."
            )
        for request, _ in show_what_was_forgotten(Audits(home), records, registry, [info]):
            raise ConflictError(
                f"{info.version} knows what forget request {request.request_id} is about, "
                f"which is {request.state} (reached: {request.reached}). It is not served "
                "again: restore the request first, or activate another version."
            )
    return registry.activate(info.version)
