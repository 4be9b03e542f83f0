"""Options of the app (``--conf KEY VALUE``) and the folders of its home."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from segunlearn.cases import People
from segunlearn.errors import InvalidInputError

#: Where the app keeps everything when neither ``--conf home`` nor SEGUNLEARN_HOME is given.
DEFAULT_HOME = Path("~/.local/share/segunlearn")

Kind = Literal["auto", "dicom", "files"]
Login = Literal["off", "tokens", "oidc"]

#: Keys that MONAI Label itself reads from ``--conf``.
_PLATFORM_KEYS = frozenset({"server_mode"})

_SAFE_URL = re.compile(r"https://[^\s?#]+$|http://(?:127\.0\.0\.1|localhost|\[::1\])[:/][^\s?#]*$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class AppOptions:
    """What ``--conf KEY VALUE`` can set; the names of the fields are the keys.

    Parameters
    ----------
    home
        Folder of the store, the models and the caches; default from SEGUNLEARN_HOME.
    store
        URL of the store (``postgresql+psycopg://…``); empty: SQLite in ``home``.
    model
        Name of the model in the registry and in ``/infer/<model>``.
    labels
        Names of the structures, separated by commas; needed once, before the first training, when
        neither an active version nor the labels of the studies name them.
    kind
        ``"dicom"`` or ``"files"`` when a folder of studies is not recognised; ``"auto"`` looks.
    modalities
        DICOM modalities that are listed, separated by commas.
    filter
        Further QIDO-RS attributes that a series must match, ``Keyword=value`` separated by ``&``,
        for example ``BodyPartExamined=HEAD``.
    automatic_labels
        ``true``: a DICOM SEG that a machine made alone (SegmentAlgorithmType AUTOMATIC) is a
        finished label where a series has no other.
    people
        CSV with the columns ``file``, ``person``, ``study`` for folders of files; read again when
        it has changed. A file without a row is in no list, and ``GET /datastore/`` counts it.
    person_regex
        Its first group is the person, searched in the file's stem.
    device
        ``auto``, ``cpu``, ``cuda:0``.
    refresh
        Seconds after which the list of studies is read again; a list that takes long to read is
        left alone for twenty times as long.
    poll
        Seconds between two looks into the PACS for documents of other systems.
    queue
        Inference requests that may wait for the device; more are told to come back.
    viewer
        Folder that ``segunlearn viewer`` made; empty: the OHIF that comes with MONAI Label.
    login
        Who may use the server: ``off``: whoever works on this machine, as administrator;
        ``tokens``: holders of a token of ``segunlearn token create``; ``oidc``: users of an OpenID
        Connect issuer.
    issuer
        URL of the OpenID Connect issuer, exactly as its tokens name it.
    audience
        What ``aud`` of a token must hold; empty: MONAI_LABEL_AUTH_CLIENT_ID.
    let_everyone_in
        ``true`` serves other machines too while ``login`` is off: whoever reaches the port reads
        every image and may delete models.
    max_upload
        Largest body of an upload, in MiB.
    """

    home: Path = field(default_factory=lambda: DEFAULT_HOME.expanduser())
    store: str = ""
    model: str = "segmentation"
    labels: tuple[str, ...] = ()
    kind: Kind = "auto"
    modalities: tuple[str, ...] = ("CT", "MR")
    filter: tuple[tuple[str, str], ...] = ()
    automatic_labels: bool = False
    people: str = ""
    person_regex: str = ""
    device: str = "auto"
    refresh: float = 10.0
    poll: float = 60.0
    queue: int = 16
    viewer: str = ""
    login: Login = "off"
    issuer: str = ""
    audience: str = ""
    let_everyone_in: bool = False
    max_upload: int = 2048

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.model):
            raise InvalidInputError(
                f"--conf model {self.model!r}: use letters, digits, '-' and '_', 64 at most."
            )
        if self.kind not in get_args(Kind):
            raise InvalidInputError(f"--conf kind {self.kind!r}: use auto, dicom or files.")
        different = {name.strip().casefold() for name in self.labels}
        if len(different) != len(self.labels) or not all(self.labels):
            raise InvalidInputError(
                f"--conf labels {','.join(self.labels)!r}: names must differ, and not only in case."
            )
        if not self.modalities or not all(re.fullmatch("[A-Z]{2,16}", m) for m in self.modalities):
            raise InvalidInputError(
                f"--conf modalities {','.join(self.modalities)!r}: name at least one, as in CT,MR."
            )
        if not 0 < self.poll < 86400:
            raise InvalidInputError("--conf poll must lie between 0 and 86400 seconds.")
        if self.refresh < 0 or self.queue < 1:
            raise InvalidInputError("--conf refresh must be >= 0 seconds and queue at least 1.")
        if self.viewer and not (Path(self.viewer) / "index.html").is_file():
            raise InvalidInputError(
                f"--conf viewer {self.viewer}: no viewer is there. Make it: segunlearn viewer DIR."
            )

        self._check_login()

    def _check_login(self) -> None:
        if self.login not in get_args(Login):
            raise InvalidInputError(f"--conf login {self.login!r}: use off, tokens or oidc.")
        if (self.login == "oidc") != bool(self.issuer):
            raise InvalidInputError(
                "--conf login oidc and --conf issuer URL belong together; give both or neither."
            )
        if self.issuer and not _SAFE_URL.match(self.issuer):
            raise InvalidInputError(
                f"--conf issuer {self.issuer}: must begin with https://; plain http is for "
                "127.0.0.1 alone, because whoever can change its answers can sign tokens."
            )
        if self.let_everyone_in and self.login != "off":
            raise InvalidInputError("--conf let_everyone_in has no meaning while login is on.")
        if self.max_upload < 1:
            raise InvalidInputError("--conf max_upload must be at least 1 MiB.")

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any]) -> AppOptions:
        """Read the texts of ``--conf``.

        Raises
        ------
        InvalidInputError
            A key is unknown, or a value cannot be read.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(conf) - known - _PLATFORM_KEYS)
        if unknown:
            raise InvalidInputError(
                f"--conf {', '.join(unknown)}: no such option. Options are "
                f"{', '.join(sorted(known))}."
            )
        values = {k: _READERS[k](str(v)) for k, v in conf.items() if k in known and str(v) != ""}
        if "home" not in values and os.environ.get("SEGUNLEARN_HOME"):
            values["home"] = _path(os.environ["SEGUNLEARN_HOME"])
        if os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "yes", "on"):
            values.setdefault("login", "oidc")  # MONAI Label's own way to say it
            if values["login"] == "oidc":
                values.setdefault("issuer", os.environ.get("MONAI_LABEL_AUTH_REALM_URI", ""))
        return cls(**values)

    def make_people(self) -> People:
        """Make the rule from file stem to person and study.

        Raises
        ------
        InvalidInputError
            The people file or the regex is wrong, or the file names DICOM series.
        """
        people = People(self.person_regex or None, Path(self.people) if self.people else None)
        if people.names_series:
            raise InvalidInputError(
                "--conf people: the file names the DICOM series of these images, so a mark of a "
                "series here would not be the one that the ledger knows. Serve the archive that "
                "they come from, or leave the column 'series' out."
            )
        return people


@dataclass(frozen=True)
class Home:
    """Folders and files under the home; nothing is made before it is needed."""

    root: Path

    def model(self, name: str) -> Path:
        """Registry folder of a model."""
        return self.root / "models" / name

    def models(self) -> list[str]:
        """Names of the models that have a registry folder, in order."""
        return sorted(p.name for p in (self.root / "models").glob("*") if p.is_dir())

    @property
    def database(self) -> Path:
        """SQLite store."""
        return self.root / "segunlearn.db"

    @property
    def runs(self) -> Path:
        """One folder a run, with its checkpoints."""
        return self.root / "runs"

    @property
    def audits(self) -> Path:
        """One folder an audit, with its report and attestation, and ``work`` for what is kept."""
        return self.root / "audits"

    @property
    def audit_key(self) -> Path:
        """Private key that signs audits; the public one lies beside it."""
        return self.root / "audit.key"

    @property
    def unlearning(self) -> Path:
        """Journals of unlearning, restoring and purging under way, and their candidates."""
        return self.root / "unlearning"

    @property
    def deposits(self) -> Path:
        """Sealed old weights; see ``segunlearn.adapters.deposit``."""
        return self.root / "deposits"

    @property
    def sites(self) -> Path:
        """Adapters of sites, one folder a model, and ``aliases.json``."""
        return self.root / "sites"

    @property
    def replay(self) -> Path:
        """Generators of replayed images, one folder a model; see ``generator_store``."""
        return self.root / "replay"

    @property
    def keys(self) -> Path:
        """Keys of the deposits; SEGUNLEARN_KEYS puts them on another disk than the models."""
        place = os.environ.get("SEGUNLEARN_KEYS")
        return _path(place) if place else self.root / "keys"

    @property
    def cache(self) -> Path:
        """Converted images and labels; may be deleted at any time."""
        return self.root / "cache"

    @property
    def labels(self) -> Path:
        """Labels that cannot be kept with the studies."""
        return self.root / "labels"

    @property
    def infos(self) -> Path:
        """What clients said about images and labels."""
        return self.root / "infos"

    @property
    def locks(self) -> Path:
        """Lock files."""
        return self.root / "locks"

    @property
    def sessions(self) -> Path:
        """Volumes uploaded for one session."""
        return self.root / "sessions"

    @property
    def archive_index(self) -> Path:
        """Index of a folder of DICOM files."""
        return self.root / "archive-index"

    @property
    def site_key(self) -> Path:
        """Key of the pseudonyms."""
        return self.root / "site.key"

    def scratch(self) -> Path:
        """Folder of temporary files, made when missing."""
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _path(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _filter(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in text.split("&"):
        key, sign, value = part.partition("=")
        if not sign or not re.fullmatch("[A-Za-z0-9]{1,64}", key.strip()) or not value.strip():
            raise InvalidInputError(
                f"--conf filter {text!r}: write Keyword=value, joined by &, for example "
                "BodyPartExamined=HEAD."
            )
        pairs.append((key.strip(), value.strip()))
    return tuple(pairs)


def _number(key: str, kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return kind(text)
        except ValueError as error:
            raise InvalidInputError(f"--conf {key} {text!r}: must be a number.") from error

    return read


def _truth(key: str) -> Callable[[str], bool]:
    def read(text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise InvalidInputError(f"--conf {key} {text!r}: must be true or false.")
        return text.lower() == "true"

    return read


_READERS: dict[str, Callable[[str], Any]] = {
    "home": _path,
    "store": str,
    "model": str,
    "labels": _names,
    "kind": str,
    "modalities": _names,
    "filter": _filter,
    "automatic_labels": _truth("automatic_labels"),
    "people": str,
    "person_regex": str,
    "device": str,
    "refresh": _number("refresh", float),
    "poll": _number("poll", float),
    "queue": _number("queue", int),
    "viewer": lambda text: str(_path(text)),
    "login": str,
    "issuer": str,
    "audience": str,
    "let_everyone_in": _truth("let_everyone_in"),
    "max_upload": _number("max_upload", int),
}
