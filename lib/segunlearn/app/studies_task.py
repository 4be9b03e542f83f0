"""What the tasks behind ``/train`` share: options, progress, and the studies that they see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from monailabel.interfaces.tasks.train import TrainTask

from segunlearn.app import train_options
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.models import ActiveModel
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.records import Records
from segunlearn.app.train_options import Option
from segunlearn.app.train_stats import stats_of
from segunlearn.cases import Case
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import UnavailableError
from segunlearn.records.runs import RunRecord

logger = logging.getLogger(__name__)

#: A killed training lets go of its lock at once; one that lost its server stops within seconds.
LOCK_SECONDS = 60.0


class StudiesTask(TrainTask):
    """Base of the tasks; they declare what they offer, and which run they show.

    Parameters
    ----------
    model
        What is served.
    options, home, records
        Of the app.
    every_study
        Opens the studies with those that are marked: to measure them, or to count them.
    """

    #: Whether the deprecated ``POST /train/``, which starts every trainer, starts it too.
    ordinary: ClassVar[bool] = False
    #: What clients show, its options by name, and the kind of its runs.
    about: ClassVar[str]
    offers: ClassVar[Mapping[str, Option]]
    kind: ClassVar[str]

    def __init__(
        self,
        model: ActiveModel,
        options: AppOptions,
        home: Home,
        records: Records,
        every_study: Callable[[], StudiesDatastore],
    ) -> None:
        super().__init__(self.about)
        self._model, self._options, self._home, self._records = model, options, home, records
        self._every_study = every_study

    def config(self) -> dict[str, Any]:
        """Options with their defaults, as clients show them."""
        return train_options.config(self.offers)

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked options of a request, fit for JSON, before a process is started.

        Raises
        ------
        InvalidInputError
            A value is wrong, or the request tries to choose the cases.
        """
        client = request.get("client_id")
        checked = train_options.check(request, self.offers)
        return {**checked, "client_id": str(client)[:200]} if client else checked

    def stats(self) -> dict[str, Any]:
        """Progress of the newest run, in the shape that stock clients render."""
        try:
            run = self.newest()
        except UnavailableError as error:
            logger.warning("no progress to show: %s", error)
            return {}
        return self.shown(run) if run is not None else {}

    def newest(self) -> RunRecord | None:
        """Run whose progress is shown; None without any."""
        return self._records.runs.latest(model=self._model.name, kind=self.kind)

    @staticmethod
    def shown(run: RunRecord) -> dict[str, Any]:
        """Statistics of a run."""
        return stats_of(run)

    def record_plan(
        self, asked: Mapping[str, Any], plan: Mapping[str, Any], lines: Sequence[str], by: str
    ) -> dict[str, Any]:
        """Tell what a run would do, and record it as one that has ended.

        Parameters
        ----------
        asked
            Options or order.
        plan, lines
            For programs, and for people.
        by
            Who asked.
        """
        for line in lines:  # the platform shows the last lines of the task
            logger.info("%s", line)
        runs, parameters = self._records.runs, {**asked, "plan": plan, "lines": list(lines)}
        run_id = runs.start(self.kind, self._model.name, parameters, requested_by=by)
        runs.finish(run_id, "done", "a plan; nothing was changed")
        return {"planned": True, "run_id": run_id, "plan": plan, "lines": list(lines)}


def header_of(studies: StudiesDatastore) -> Callable[[Case], SiteKey | None]:
    """Make the function that tells the scanner of a case of the studies."""
    return lambda case: studies.header_of(case.series)


def labelled_cases(studies: StudiesDatastore) -> list[Case]:
    """Who has a finished label, without the files: enough to choose sets, and nothing is fetched.

    The path of a label is that of its image, and neither need exist.
    """
    found = []
    for image_id in studies.get_labeled_images():
        record = studies.record(image_id)
        found.append(studies.case_of(record, studies.image_file(record)))
    return found
