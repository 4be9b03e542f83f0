"""A row of the trail as FHIR R4 AuditEvent.

Codes: DICOM PS3.16 CID 400 to 403 for what kind of event it is, and our own for what was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from segunlearn.records.trail import ACTIONS, TrailRow

_DICOM: Final = "http://dicom.nema.org/resources/ontology/DCM"
_OURS: Final = "urn:segunlearn:trail:action"
_ROWS: Final = "urn:segunlearn:trail:row"

_APPLICATION: Final = ("110100", "Application Activity")
_USE: Final = ("110101", "Audit Log Used")
_EXPORT: Final = ("110106", "Export")
_IMPORT: Final = ("110107", "Import")
_ALERT: Final = ("110113", "Security Alert")
_LOGIN: Final = ("110114", "User Authentication")

#: Action -> (event of PS3.16, FHIR action: Create, Read, Update, Delete, Execute).
_EVENTS: Final[Mapping[str, tuple[tuple[str, str], str]]] = {
    "login": (_LOGIN, "E"),
    "login_failure": (_LOGIN, "E"),
    "forbidden": (_ALERT, "E"),
    "token_create": (_ALERT, "C"),
    "token_revoke": (_ALERT, "D"),
    "propose": (_APPLICATION, "C"),
    "dismiss": (_APPLICATION, "U"),
    "mark": (_APPLICATION, "C"),
    "withdraw": (_APPLICATION, "U"),
    "approve": (_APPLICATION, "U"),
    "unlearn": (_APPLICATION, "E"),
    "fulfil": (_APPLICATION, "U"),
    "refuse": (_APPLICATION, "U"),
    "restore": (_APPLICATION, "U"),
    "purge": (_APPLICATION, "D"),
    "look_back": (_USE, "R"),
    "change_need": (_APPLICATION, "U"),
    "train": (_APPLICATION, "E"),
    "publish": (_APPLICATION, "U"),
    "delete": (_APPLICATION, "D"),
    "read_report": (_EXPORT, "R"),
    "read_images": (_EXPORT, "R"),
    "read_log": (_USE, "R"),
    "backup": (_EXPORT, "R"),
    "restore_home": (_IMPORT, "C"),
}

#: AuditEvent.outcome: success, minor failure (the caller), serious failure (the work).
_OUTCOMES: Final = {"done": "0", "refused": "4", "failed": "8"}


def audit_event(row: TrailRow) -> dict[str, Any]:
    """Return a row as an AuditEvent resource.

    The row's number and digest stand in an entity of their own, so that a copy that lies elsewhere
    witnesses the chain.
    """
    (code, display), action = _EVENTS[row.action]
    agent: dict[str, Any] = {
        "who": {"display": row.actor or "nobody who is known"},
        "requestor": True,
    }
    if row.role:
        agent["role"] = [{"text": row.role}]
    if row.source == "command line":
        agent["media"] = {"system": _OURS, "code": "command-line"}
    elif row.source:
        agent["network"] = {"address": row.source, "type": "2"}  # an IP address
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": f"segunlearn-{row.seq}",
        "type": {"system": _DICOM, "code": code, "display": display},
        "subtype": [{"system": _OURS, "code": row.action, "display": ACTIONS[row.action]}],
        "action": action,
        "recorded": row.time,
        "outcome": _OUTCOMES[row.outcome],
        "agent": [agent],
        "source": {"observer": {"display": "SegUnlearn"}},
        "entity": [
            {
                "what": {"identifier": {"system": _ROWS, "value": str(row.seq)}},
                "detail": [
                    {"type": "sha256", "valueString": row.digest},
                    {"type": "previous sha256", "valueString": row.previous},
                ],
            }
        ],
    }
    if row.note:
        event["outcomeDesc"] = row.note
    if row.kind or row.what:
        system = f"urn:segunlearn:{row.kind or 'thing'}"
        event["entity"].append(
            {"what": {"identifier": {"system": system, "value": row.what or "-"}}}
        )
    return event
