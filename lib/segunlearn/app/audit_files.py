"""The audits of a home: one folder each, signed when it appears and never changed.

::

    home/audits/<audit id>/audit.json          figures, findings, verdict
    home/audits/<audit id>/report.html         the same for people
    home/audits/<audit id>/attestation.json    DSSE envelope over the digests of both and the models
    home/audits/<audit id>/public-key.pem      for whoever verifies it elsewhere
    home/audits/work/<key>/                    measures and references that are used again
    home/audit.key, audit-public-key.pem       Ed25519; the private one with mode 0600
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from segunlearn.app.options import Home
from segunlearn.audit.attestation import (
    attest,
    create_keys,
    read_private_key,
    read_public_key,
    verify,
)
from segunlearn.audit.run import read_result
from segunlearn.errors import IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.durable import sync_folder, write_durably, write_json_durably
from segunlearn.records.runs import Runs
from segunlearn.records.versions import file_sha256

RESULT: Final = "audit.json"
REPORT: Final = "report.html"
ATTESTATION: Final = "attestation.json"
PUBLIC_KEY: Final = "public-key.pem"

_ID: Final = re.compile(r"[0-9a-f]{32}")
_STAGING: Final = ".staging-"


@dataclass(frozen=True)
class AuditSummary:
    """One line of the list of audits.

    Parameters
    ----------
    audit_id
        Also the id of its run.
    created
        UTC, ISO 8601; empty when damaged.
    model, candidate, original
        Names.
    outcome, reached, needed, reference
        Of the verdict; ``outcome`` is ``"damaged"`` when the files are not as they were signed.
    studies, persons
        Size of S.
    message
        Why it is damaged.
    """

    audit_id: str
    created: str
    model: str
    candidate: str
    original: str
    outcome: str
    reached: str
    needed: str
    reference: str
    studies: int
    persons: int
    message: str


class Audits:
    """The audits of one home; whatever is read is verified first."""

    def __init__(self, home: Home) -> None:
        self.home, self._root = home, home.audits

    @property
    def public_key(self) -> Path:
        """File of the home's public key."""
        return self.home.audit_key.with_name("audit-public-key.pem")

    def work(self, key: str) -> Path:
        """Folder of measures that audits of the same models and studies share."""
        return self._root / "work" / key

    def ids(self) -> list[str]:
        """Ids of all audits, newest first."""
        if not self._root.is_dir():
            return []
        found = [
            (folder.stat().st_mtime_ns, folder.name)
            for folder in self._root.iterdir()
            if _ID.fullmatch(folder.name) and folder.is_dir()
        ]
        return [name for _, name in sorted(found, reverse=True)]

    def summaries(self, ids: Sequence[str]) -> list[AuditSummary]:
        """Lines of the list; a damaged audit is one that says so."""
        return [self._summary(audit_id) for audit_id in ids]

    def _summary(self, audit_id: str) -> AuditSummary:
        try:
            result = self.get(audit_id)
        except (IntegrityError, NotFoundError) as error:
            nothing = {"created": "", "about": {}, "sets": {}}
            return _summary_of(audit_id, nothing, {"outcome": "damaged"}, str(error))
        return _summary_of(audit_id, result, result["verdict"], "")

    def folder(self, audit_id: str) -> Path:
        """Folder of an audit.

        Raises
        ------
        NotFoundError
            There is none of this id.
        """
        folder = self._root / audit_id
        if not _ID.fullmatch(audit_id) or not folder.is_dir():
            raise NotFoundError(f"there is no audit {audit_id!r:.40}; list the audits first.")
        return folder

    def get(self, audit_id: str) -> dict[str, Any]:
        """Read the result of an audit, verified.

        Raises
        ------
        NotFoundError
            There is no such audit.
        IntegrityError
            It is not as it was signed.
        """
        return self._read(audit_id)[1]

    def report(self, audit_id: str) -> tuple[dict[str, Any], bytes]:
        """Read result and HTML report of an audit, verified together; errors as for :meth:`get`."""
        _, result = self._read(audit_id, REPORT)
        return result, (self.folder(audit_id) / REPORT).read_bytes()

    def _read(self, audit_id: str, *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Verify an audit; returns its signed statement and its result."""
        folder = self.folder(audit_id)
        artefacts = {name: folder / name for name in (RESULT, *names)}
        content = verify_folder(folder, public_key=self.public_key, artefacts=artefacts)
        result = read_result(folder / RESULT)
        about = result.get("about")
        if not isinstance(about, dict):
            raise IntegrityError(f"{RESULT}: does not say what was audited.")
        if about.get("audit_id") != audit_id:
            raise IntegrityError(
                f"{RESULT}: is of the audit {about.get('audit_id')}, whose files were put in the "
                f"place of {audit_id}. Bring that folder back from a backup, or audit again."
            )
        return content, result

    @cached_property
    def statements(self) -> dict[str, dict[str, Any] | None]:
        """Signed statements of all audits, each verified once; None of one that is damaged."""
        found: dict[str, dict[str, Any] | None] = {}
        for audit_id in self.ids()[::-1]:
            try:
                found[audit_id] = self._read(audit_id)[0]
            except (IntegrityError, NotFoundError):
                found[audit_id] = None
        return found

    def write(self, audit_id: str, result: Mapping[str, Any], report: str) -> Path:
        """Sign an audit and let it appear by one rename.

        Returns
        -------
        Path
            Its folder.

        Raises
        ------
        InvalidInputError
            The signing key can be read by others, or is none.
        """
        key = self._signing_key()
        self._root.mkdir(parents=True, exist_ok=True)
        staging = self._root / f"{_STAGING}{audit_id}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write_json_durably(staging / RESULT, result)
        write_durably(staging / REPORT, report.encode("utf-8"))
        write_durably(staging / PUBLIC_KEY, _pem(key.public_key()))
        files = {name: staging / name for name in (RESULT, REPORT)}
        write_durably(staging / ATTESTATION, attest(result, files, key))
        folder = self._root / audit_id
        os.replace(staging, folder)  # noqa: PTH105 - see records.durable
        sync_folder(self._root)
        self.__dict__.pop("statements", None)
        return folder

    def _signing_key(self) -> Ed25519PrivateKey:
        private = self.home.audit_key
        if not private.exists():
            with contextlib.suppress(InvalidInputError):  # another process was first
                create_keys(private, self.public_key)
        key = read_private_key(private)
        if not self.public_key.is_file() or self.public_key.read_bytes() != _pem(key.public_key()):
            write_durably(self.public_key, _pem(key.public_key()))
        return key


def verify_folder(
    folder: Path,
    *,
    public_key: Path | None = None,
    artefacts: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Verify an audit's folder, offline.

    Parameters
    ----------
    folder
        With ``attestation.json``.
    public_key
        Of whom is believed; by default the one in the folder, which proves only that nothing was
        changed since somebody signed it.
    artefacts
        Subject to file; by default audit.json and report.html of the folder.

    Returns
    -------
    dict
        The in-toto statement.

    Raises
    ------
    IntegrityError
        A byte differs, or a file is missing; the message names the file.
    """
    key_file = public_key or folder / PUBLIC_KEY
    envelope = folder / ATTESTATION
    for path in (key_file, envelope):
        if not path.is_file():
            raise IntegrityError(f"{path.name}: is missing; without it nothing can be verified.")
    try:
        key = read_public_key(key_file)
    except InvalidInputError as error:
        raise IntegrityError(str(error)) from error
    if key_file.read_bytes() != _pem(key):
        raise IntegrityError(f"{key_file.name}: is not as the key was written; it was changed.")
    try:
        content = verify(envelope.read_bytes(), key)
    except IntegrityError as error:
        raise IntegrityError(f"{envelope.name} (with {key_file.name}): {error}") from error
    if artefacts is None:
        artefacts = {name: folder / name for name in (RESULT, REPORT)}
    digests = {s["name"]: s["digest"]["sha256"] for s in content["subject"]}
    for name, path in artefacts.items():
        if name not in digests:
            raise IntegrityError(
                f"{path.name}: the attestation does not speak of {name!r}; it speaks of "
                f"{', '.join(digests)}."
            )
        if not path.is_file():
            raise IntegrityError(f"{path.name}: is missing, and the attestation speaks of it.")
        if file_sha256(path) != digests[name]:
            raise IntegrityError(
                f"{path.name}: is not the file that was attested as {name!r}; its SHA-256 should "
                f"be {digests[name][:12]}…. Ask for the original."
            )
    return content


def levels_found(audits: Audits, runs: Runs) -> dict[tuple[str, str], str]:
    """Level that the newest audit of a version found of a series: by SHA-256 and pseudonym.

    A damaged audit found nothing; its run says of which version and series.
    """
    found: list[tuple[str, str, Iterable[str], str]] = []
    for audit_id, content in audits.statements.items():
        if content is None:
            with contextlib.suppress(NotFoundError):
                run = runs.get(audit_id)
                about = run.parameters.get("candidate_sha256", ""), run.parameters.get("forget", ())
                found.append((run.updated, *about, "none"))
            continue
        said, reached = content["predicate"], content["predicate"]["verdict"]["reached"]
        found += [
            (said["created"], s["digest"]["sha256"], said["forgotten"], reached)
            for s in content["subject"]
            if s["name"] == "candidate"
        ]
    found.sort(key=lambda one: one[0])
    return {(sha256, name): reached for _, sha256, names, reached in found for name in names}


def _summary_of(
    audit_id: str, result: Mapping[str, Any], verdict: Mapping[str, str], message: str
) -> AuditSummary:
    about, forget = result["about"], result["sets"].get("forget", {})
    return AuditSummary(
        audit_id=audit_id,
        created=result["created"],
        model=about.get("model", ""),
        candidate=about.get("candidate", ""),
        original=about.get("original", ""),
        outcome=verdict["outcome"],
        reached=verdict.get("reached", ""),
        needed=verdict.get("needed", ""),
        reference=verdict.get("reference", ""),
        studies=forget.get("studies", 0),
        persons=forget.get("persons", 0),
        message=message,
    )


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
