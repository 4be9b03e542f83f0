"""The two-version attack: who holds the model before and after sees which studies changed.

No approximate or exact method can pass it in general (Chen et al., CCS 2021): retraining changes
the forgotten studies most, too. It is reported, and answered by access control over old versions.
"""

from __future__ import annotations

from collections.abc import Sequence

from segunlearn.audit.membership import Membership, Scores, membership
from segunlearn.audit.scores import StudyScore
from segunlearn.errors import InvalidInputError


def two_versions(
    before_forgotten: Sequence[StudyScore],
    after_forgotten: Sequence[StudyScore],
    before_unseen: Sequence[StudyScore],
    after_unseen: Sequence[StudyScore],
) -> Membership:
    """Attack by the change of loss, ``|l_before - l_after|``, of forgotten against unseen studies.

    Raises
    ------
    InvalidInputError
        The two versions were scored on different studies, or too few persons.
    """
    return membership(
        _change(before_forgotten, after_forgotten), _change(before_unseen, after_unseen)
    )


def _change(before: Sequence[StudyScore], after: Sequence[StudyScore]) -> Scores:
    if [s.series for s in before] != [s.series for s in after]:
        raise InvalidInputError("both versions must be scored on the same studies, in one order.")
    return Scores(
        tuple(abs(a.loss - b.loss) for a, b in zip(before, after, strict=True)),
        tuple(s.person for s in before),
    )
