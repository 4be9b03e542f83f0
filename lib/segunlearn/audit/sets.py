"""The sets of an audit: S, R, C and T, divided by person and named by pseudonyms."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning import Study
from segunlearn.unlearning.sets import check_disjoint


@dataclass(frozen=True)
class AuditSets:
    """Studies of the audit, divided by person.

    Parameters
    ----------
    config
        Of the models.
    forget, retain
        S and R.
    calibration
        C: never trained on; only used as unlabelled images of the distillation.
    test
        T: never trained on and never given to an unlearning method.

    Raises
    ------
    InvalidInputError
        S or T is empty, a person is in two sets, or a study is given twice.
    LabelError
        A label value the model does not know.
    """

    config: ModelConfig
    forget: tuple[Study, ...]
    retain: tuple[Study, ...]
    calibration: tuple[Study, ...]
    test: tuple[Study, ...]

    def __post_init__(self) -> None:
        for name in ("forget", "test"):
            if not getattr(self, name):
                raise InvalidInputError(f"the {name} set is empty; an audit needs one.")
        check_disjoint(self.by_name(), self.config)

    def by_name(self) -> dict[str, tuple[Study, ...]]:
        """Return the four sets."""
        return {
            "forget": self.forget,
            "retain": self.retain,
            "calibration": self.calibration,
            "test": self.test,
        }

    def pseudonymised(self, pseudonyms: Pseudonyms) -> AuditSets:
        """Replace every identifier by its keyed pseudonym."""
        sets = {
            name: tuple(
                dataclasses.replace(
                    s,
                    series=pseudonyms.of(s.series),
                    study=pseudonyms.of(s.study),
                    person=pseudonyms.of(s.person),
                )
                for s in studies
            )
            for name, studies in self.by_name().items()
        }
        return AuditSets(self.config, **sets)

    def digest(self) -> str:
        """SHA-256 over identifiers, images and labels of all sets."""
        sha = hashlib.sha256()
        for name, studies in self.by_name().items():
            for s in studies:
                sha.update(f"{name}/{s.series}/{s.person}/{tuple(s.image.shape)}".encode())
                sha.update(s.image.contiguous().numpy().tobytes())
                sha.update(s.label.contiguous().numpy().tobytes())
        return sha.hexdigest()
