"""The errors SegUnlearn raises on purpose.

::

    SegUnlearnError
    ├── InvalidInputError             400  a value, file or option is wrong
    │   ├── InvalidIdentifierError    400  not a DICOM UID, a person, a label or a name
    │   ├── UnsupportedSeriesError    422  a DICOM series that cannot be read as one volume
    │   ├── GeometryError             422  image, label or SEG do not lie on the same grid
    │   ├── LabelError                422  unknown or missing label values
    │   └── UnsupportedNetworkError   422  a network or layer that a method cannot treat
    ├── NotFoundError                 404  no such series, model, version, run or request
    │   └── StudyNotInLedgerError     404  no recorded run used the study
    ├── ForbiddenError                403  the caller's role or the forget set forbids it
    ├── ConflictError                 409  the state forbids it
    │   └── IllegalTransitionError    409  a forget request cannot go from this state to that one
    ├── IntegrityError                409  a digest or the ledger's chain does not agree
    ├── CancelledError                409  the run was stopped by a person
    └── UnavailableError              503  the PACS or the store cannot be reached now
        └── NoMemoryError             503  there is not enough memory for an image now

Every message says what happened, why, and what to do. Identifiers of patients never stand in a
message that is logged; series and studies are named by their pseudonym there.
"""


class SegUnlearnError(Exception):
    """Root of the tree; ``http_status`` is what the server answers.

    ``about`` is the file's name where the message does not tell it: it may be a patient's, and
    messages are logged and recorded. Only the command line shows it.
    """

    http_status = 500
    about: str = ""


class InvalidInputError(SegUnlearnError, ValueError):
    """A value, a file or an option from outside is wrong."""

    http_status = 400


class InvalidIdentifierError(InvalidInputError):
    """A string is not a valid DICOM UID, person, label or name."""


class UnsupportedSeriesError(InvalidInputError):
    """A DICOM series cannot be read as one volume; the message names the series and the reason."""

    http_status = 422


class GeometryError(InvalidInputError):
    """Two objects that must share a voxel grid do not."""

    http_status = 422


class LabelError(InvalidInputError):
    """A label map holds unknown values, or a needed label is missing."""

    http_status = 422


class UnsupportedNetworkError(InvalidInputError):
    """A method cannot treat this network; the message names the layer."""

    http_status = 422


class NotFoundError(SegUnlearnError, LookupError):
    """The series, model, version, run or request does not exist."""

    http_status = 404


class StudyNotInLedgerError(NotFoundError):
    """No recorded training run used the study."""


class ForbiddenError(SegUnlearnError):
    """The caller's role, or a live forget request, forbids the action."""

    http_status = 403


class ConflictError(SegUnlearnError):
    """The current state forbids the action."""

    http_status = 409


class IllegalTransitionError(ConflictError):
    """A forget request cannot go from its state to the one asked for."""


class IntegrityError(SegUnlearnError):
    """A digest, a signature or the ledger's chain does not agree with the data."""

    http_status = 409


class CancelledError(SegUnlearnError):
    """A person stopped the run."""

    http_status = 409


class UnavailableError(SegUnlearnError):
    """The PACS or the store cannot be reached now; nothing was lost, try again.

    ``retry_after`` are the seconds after which it is worth it; the server tells them.
    """

    http_status = 503
    retry_after: int = 5


class NoMemoryError(UnavailableError):
    """There is not enough memory for an image now; smaller ones may still go."""
