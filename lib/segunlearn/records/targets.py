"""What a forget request is about, and who a person is.

Persons
    DICOM's PatientID is unique only within its issuer (PS3.3 C.7.1.1). A person is written
    ``PatientID`` or, with the issuer, ``PatientID^^^IssuerOfPatientID`` (as in HL7's CX). White
    space around an id is padding and dropped, runs of it inside count as one space. Two persons
    are the same when their ids agree and their issuers agree *or one of them is unknown*:
    where it is in doubt, a study stays out of training.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from segunlearn.dicom.identifiers import is_pattern, is_uid, validate_uid
from segunlearn.errors import InvalidIdentifierError, InvalidInputError

TargetKind = Literal["patient", "study", "series", "structure"]
KINDS: Final[tuple[str, ...]] = get_args(TargetKind)

#: Longest PatientID and issuer, in characters (VR LO, PS3.5 section 6.2).
_PATIENT_LENGTH: Final = 64
#: Longest id of a study or series in folders of files, where it is a file's name.
_OPAQUE_LENGTH: Final = 128
_SEPARATOR: Final = "^^^"


@dataclass(frozen=True)
class Target:
    """A patient, study, series or structure.

    Parameters
    ----------
    kind
        What it is.
    id
        PatientID, StudyInstanceUID, SeriesInstanceUID, or the name of a label.
    issuer
        IssuerOfPatientID, empty when unknown or not a patient.
    model
        For a structure, the model that shall forget it; empty means every model.
    """

    kind: str
    id: str
    issuer: str = ""
    model: str = ""


def clean_text(value: object, what: str, limit: int, *, empty: bool = False) -> str:
    """Return a free text unchanged, or raise.

    Raises
    ------
    InvalidInputError
        Not a text, empty, longer than ``limit`` characters, or with control characters other
        than line breaks and tabs (databases refuse some of them).
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{what} must be a text, not {type(value).__name__}.")
    if not value.strip() and not empty:
        raise InvalidInputError(f"{what} is empty; say it in a few words.")
    if len(value) > limit:
        raise InvalidInputError(f"{what} has {len(value)} characters; {limit} is the limit.")
    if any(_is_odd(c) for c in value if c not in "\n\r\t"):
        raise InvalidInputError(f"{what} holds control characters; remove them.")
    return value


def _is_odd(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def unpad(value: str) -> str:
    """Drop DICOM's padding (spaces and NUL) around a value."""
    return value.strip(" \0")


def is_of_dicom(uid: str) -> bool:
    """Tell the UID of a study or series from a file's name, which may be a number."""
    return "." in uid and is_uid(uid, strict=False)


def person_name(patient_id: str, issuer: str | None = None) -> str:
    """Write a person as one text, the form that ``Case.person`` and the ledger use.

    Examples
    --------
    >>> person_name(" 4711 "), person_name("4711", "St. Anna")
    ('4711', '4711^^^St. Anna')
    """
    patient, issuer = _squeeze(patient_id), _squeeze(issuer or "")
    return f"{patient}{_SEPARATOR}{issuer}" if issuer else patient


def split_person(person: str) -> tuple[str, str]:
    """Read (PatientID, issuer) from a person's text; the issuer is empty when unknown.

    Examples
    --------
    >>> split_person("4711^^^St. Anna"), split_person("4711")
    (('4711', 'St. Anna'), ('4711', ''))
    """
    patient, _, issuer = person.partition(_SEPARATOR)
    return _squeeze(patient), _squeeze(issuer)


def same_issuer(one: str, other: str) -> bool:
    """Whether two issuers may be one: equal, or one of them unknown."""
    return one == other or not one or not other


def _squeeze(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text.replace("\0", " ")).split())


def make_target(
    kind: str, target_id: str, *, issuer: str = "", model: str = "", opaque: bool = False
) -> Target:
    """Check and normalise what a person wants to mark.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    target_id
        See :class:`Target`. A patient may be given as ``PatientID^^^Issuer``.
    issuer, model
        See :class:`Target`.
    opaque
        Studies and series come from a folder of files and their ids are names, not UIDs: 1 to
        128 printable characters without slashes. Nobody searches a PACS for its patients, so these
        may hold ``*`` and ``?``.

    Raises
    ------
    InvalidIdentifierError
        The id is not one of its kind, or a PatientID that cannot be searched for. A patient's id
        is never repeated in the message.
    InvalidInputError
        Unknown kind, or an issuer or model that does not belong to it.
    """
    if kind not in KINDS:
        raise InvalidInputError(f"{str(kind)[:40]!r} cannot be marked; use one of {list(KINDS)}.")
    if issuer and kind != "patient":
        raise InvalidInputError(f"a {kind} has no issuer; give it only for a patient.")
    if model and kind != "structure":
        raise InvalidInputError(f"a {kind} is forgotten by all models; leave the model out.")
    if not isinstance(target_id, str):
        raise InvalidIdentifierError(f"the id of a {kind} must be a text.")
    if kind == "patient":
        patient, own_issuer = split_person(target_id)
        if issuer and own_issuer and _squeeze(issuer) != own_issuer:
            raise InvalidInputError("two issuers of one patient id were given; give one.")
        if is_pattern(patient) and not opaque:
            raise InvalidIdentifierError(
                "this PatientID holds * or ?, which a PACS takes for wildcards, so it cannot be "
                "asked for this patient alone. Mark the patient's studies by their "
                "StudyInstanceUID."
            )
        return Target(kind, _patient(patient), _patient(_squeeze(issuer) or own_issuer, empty=True))
    if kind == "structure":
        return Target(kind, _name(target_id, "a structure", 64), model=_name_or_empty(model))
    return Target(kind, instance_id(kind, target_id, opaque=opaque))


def check_issuer(target: Target, issuers: Iterable[str]) -> None:
    """Refuse a patient without issuer when several issuers gave this PatientID to somebody.

    Parameters
    ----------
    target
        What a person wants to mark.
    issuers
        Of this PatientID, as far as they are known; empty ones count for nothing.

    Raises
    ------
    InvalidInputError
        The mark would hit several persons. The message names the issuers, never the patient.
    """
    named = sorted({_squeeze(issuer) for issuer in issuers} - {""})
    if target.kind == "patient" and not target.issuer and len(named) > 1:
        raise InvalidInputError(
            f"this PatientID was given by several issuers: {', '.join(named)}. They are different "
            "persons, so nothing was marked. Name the one meant: PatientID^^^Issuer."
        )


def instance_id(kind: str, value: str, *, opaque: bool) -> str:
    """Check the id of a study or series, a UID unless ``opaque``; see :func:`make_target`."""
    value = unpad(value)
    if opaque:
        return _name(value, f"a {kind}", _OPAQUE_LENGTH)
    what = {"study": "StudyInstanceUID"}.get(kind, "SeriesInstanceUID")
    return validate_uid(value, what=what, strict=False)  # what can be trained on can be forgotten


def _patient(text: str, *, empty: bool = False) -> str:
    allowed = len(text) <= _PATIENT_LENGTH and "\\" not in text and not any(map(_is_odd, text))
    if not allowed or not (text or empty):
        raise InvalidIdentifierError(
            f"this is not a PatientID: it has 1 to {_PATIENT_LENGTH} characters, no backslash and "
            "no control characters (PS3.5 section 6.2, LO). Copy it from the header."
        )
    return text


def _name(text: str, what: str, limit: int) -> str:
    good = 1 <= len(text) <= limit and text.isprintable() and text == text.strip()
    if not good or any(c in text for c in "/\\") or text in (".", ".."):
        raise InvalidIdentifierError(
            f"{text[:40]!r} cannot name {what}: use 1 to {limit} printable characters without "
            "slashes, and no spaces at the ends."
        )
    return text


def _name_or_empty(text: str) -> str:
    return _name(text, "a model", _OPAQUE_LENGTH) if text else ""
