"""Which studies stand under a marked patient's number: an archive is asked, the request keeps them.

Marks are made on the command line, too, which asks no archive, and while the archive is away; and
studies arrive later. So the archive is asked again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from segunlearn.errors import SegUnlearnError, UnavailableError
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_set import ForgetSet

logger = logging.getLogger(__name__)

#: Patients whose studies are listed at one look; the next look goes on.
PATIENTS_A_LOOK = 50


class PatientStudies:
    """Studies of marked patients.

    Parameters
    ----------
    forget_set
        Keeps the studies.
    listed
        Asks the archive for the studies of a PatientID and issuer.
    came
        Called with a request and the studies that have come to it.
    """

    def __init__(
        self,
        forget_set: ForgetSet,
        listed: Callable[[str, str], Iterable[str]],
        came: Callable[[ForgetRequest, list[str]], None] = lambda request, studies: None,
    ) -> None:
        self._forget_set, self._listed, self._came = forget_set, listed, came
        self._asked: set[str] = set()
        self._next = 0

    def of(self, request_id: str, patient_id: str, issuer: str) -> list[str]:
        """List the studies of a request: those under the number now, and those kept with it.

        What is listed is kept with the request, so that it covers them under any other number.

        Raises
        ------
        NotFoundError
            No such request.
        UnavailableError
            The archive cannot be reached now.
        """
        listed = list(self._listed(patient_id, issuer))
        new = self._forget_set.keep_studies(request_id, listed)
        request = self._forget_set.get(request_id)
        if new:
            logger.info("forget request %s covers %d more studies", request_id, len(new))
            self._came(request, new)
        return sorted({*listed, *request.studies})

    def look(self, *, new_only: bool = False) -> None:
        """List the studies of patients whose marks are new, the newest first; of others in turn.

        Raises
        ------
        UnavailableError
            The archive cannot be reached now.
        """
        marked = self._forget_set.live_patients()
        self._asked.intersection_update(request_id for request_id, _ in marked)
        turn = [one for one in reversed(marked) if one[0] not in self._asked][:PATIENTS_A_LOOK]
        if not new_only:
            others = [one for one in marked if one[0] in self._asked]
            start = self._next % len(others) if others else 0
            others = [*others[start:], *others[:start]][:PATIENTS_A_LOOK]
            self._next = start + len(others)
            turn += others
        for request_id, target in turn:
            try:
                self.of(request_id, target.id, target.issuer)
            except UnavailableError:
                raise
            except SegUnlearnError as error:
                logger.warning("studies of forget request %s: not listed: %s", request_id, error)
            self._asked.add(request_id)
