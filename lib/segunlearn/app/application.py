"""The MONAI Label app: what it is made of, and what the platform asks of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from pydicom.dataset import Dataset

from segunlearn import __version__
from segunlearn.app import background
from segunlearn.app.activelearning import First, RandomChoice, Uncertainty
from segunlearn.app.adapter_run import SITE_ADAPT
from segunlearn.app.adapter_task import SiteAdaptTask, to_refit
from segunlearn.app.batch import BatchInfer
from segunlearn.app.datastores import (
    DicomDatastore,
    StudiesDatastore,
    is_url,
    open_datastore,
)
from segunlearn.app.forget_service import ForgetService
from segunlearn.app.forgetting import UNKNOWN_ACTOR, Forgetting
from segunlearn.app.infer import SegmentationInferTask
from segunlearn.app.inference_queue import InferenceQueue, Job
from segunlearn.app.marker import MARKER
from segunlearn.app.meta_run import META_TRAIN
from segunlearn.app.meta_task import MetaTrainTask
from segunlearn.app.models import ActiveModel
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.records import Records
from segunlearn.app.replay_run import REPLAY
from segunlearn.app.replay_task import ReplayTask, to_fit_again
from segunlearn.app.requests import check_batch, check_prediction_tag, check_scoring
from segunlearn.app.scoring import DiceScoring
from segunlearn.app.security.log_names import hide_identifiers
from segunlearn.app.site_choice import Aliases, choose_site
from segunlearn.app.train import SegmentationTrainTask
from segunlearn.app.unlearn_before import open_before
from segunlearn.app.unlearn_settle import PATIENCE, settle
from segunlearn.app.unlearn_task import KINDS, UNLEARN, UnlearnTask
from segunlearn.app.upload_sessions import UploadSessions
from segunlearn.cases import Case
from segunlearn.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SegUnlearnError,
    UnavailableError,
)
from segunlearn.records.versions import VersionInfo, VersionRegistry
from segunlearn.volumes import read_volume

if TYPE_CHECKING:
    from segunlearn.inference import Segmenter

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Kinds of the runs of all trainers.
_TRAINERS_RUNS: Final = ("train", META_TRAIN, SITE_ADAPT, REPLAY, *KINDS)


def asks_to_save(request: Mapping[str, Any]) -> bool:
    """Whether an inference's mask is to be kept as a label."""
    return str(request.get("save_label", False)).lower() in ("true", "1", "yes")


class SegUnlearnApp(MONAILabelApp):
    """Segmentation with a versioned UNet on DICOM or file studies.

    The constructor is cheap and changes nothing on the disk: the platform builds the app again in
    each child process.

    Parameters
    ----------
    app_dir
        Folder of ``main.py``.
    studies
        DICOMweb URL, folder of DICOM files, or folder of NIfTI or NRRD files.
    conf
        See ``AppOptions``.

    Raises
    ------
    InvalidInputError
        An option is unknown or wrong, or there are no such studies.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, Any] | None) -> None:
        conf = dict(conf or {})
        self.options = AppOptions.from_conf(conf)
        self.home = Home(self.options.home)
        pacs = str(studies) if is_url(str(studies)) else ""
        self.records = Records(self.home, self.options.store, reports=bool(pacs))
        self.model = ActiveModel(
            VersionRegistry(self.home.model(self.options.model)),
            sites=self.home.sites / self.options.model,
            device=self.options.device,
        )
        self.forget_service = ForgetService(
            self.records,
            self.home,
            self.datastore,
            self._active_sha256,
            pacs_url=pacs,
            interval=self.options.poll,
        )
        self.inferences = InferenceQueue(self.options.queue)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="SegUnlearn",
            description="Segmentation that can take a study back out of the model",
            version=__version__,
        )
        for library in ("dicomweb_client", "highdicom", "monailabel"):  # identifiers at INFO
            logging.getLogger(library).setLevel(logging.WARNING)
        hide_identifiers(lambda: self.records.pseudonyms)
        # the platform would start a child process for it at each start and each next sample
        self._auto_update_scoring = False

    # -- what the platform asks for -------------------------------------------------------------

    def init_datastore(self) -> StudiesDatastore:
        """Open the studies; nothing is listed or downloaded yet."""
        return open_datastore(
            str(self.studies),
            self.options,
            self.home,
            label_values=self.label_values,
            keep=self.without_forgotten,
        )

    def init_infers(self) -> dict[str, Any]:
        """Models of ``/infer``."""
        task = SegmentationInferTask(
            self.model, self.home.scratch, self.shown_labels, self._before_forgetting
        )
        # the marker comes last: it must be nobody's default
        return {self.model.name: task, MARKER: self.forget_service.marker(self.home.scratch)}

    def _before_forgetting(self, request_id: str, actor: str) -> tuple[VersionInfo, Segmenter]:
        return open_before(
            self.home, self.records, self.model.name, request_id,
            actor=actor or UNKNOWN_ACTOR, role=settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
            device=self.options.device,
        )  # fmt: skip

    def init_trainers(self) -> dict[str, Any]:
        """Trainers of ``/train``; the ordinary one first, it is the clients' default."""
        if self.model.name in (UNLEARN, SITE_ADAPT, META_TRAIN, REPLAY):
            raise InvalidInputError(
                f"--conf model {self.model.name}: this is the name of a task. Choose another."
            )
        common = (self.model, self.options, self.home, self.records, self.every_study)
        return {
            self.model.name: SegmentationTrainTask(*common),
            UNLEARN: UnlearnTask(*common),
            SITE_ADAPT: SiteAdaptTask(*common),
            META_TRAIN: MetaTrainTask(*common),
            REPLAY: ReplayTask(*common),
        }

    def every_study(self) -> StudiesDatastore:
        """Open the studies with those marked for forgetting: for audits and unlearning alone."""
        return open_datastore(
            str(self.studies), self.options, self.home, label_values=self.label_values, keep=list
        )

    def init_strategies(self) -> dict[str, Any]:
        """Strategies of ``/activelearning``."""
        return {
            "random": RandomChoice(),
            "first": First(),
            "uncertainty": Uncertainty(self.model, self.home.cache / "uncertainty"),
        }

    def init_scoring_methods(self) -> dict[str, Any]:
        """Methods of ``/scoring``."""
        return {"dice": DiceScoring(lambda: self.datastore().values())}

    def init_batch_infer(self) -> Callable[..., Any]:
        """Task of ``/batch/infer``."""
        return BatchInfer()

    def _load_sessions(self, load: bool = False) -> UploadSessions | None:
        expiry = settings.MONAI_LABEL_SESSION_EXPIRY
        return UploadSessions(self.home.sessions, expiry) if load else None

    def on_init_complete(self) -> None:
        """Mount the routes, once, in the server only."""
        super().on_init_complete()
        server = sys.modules.get("monailabel.app")  # never imported here: a child has no server
        if server is not None:
            from segunlearn.app.wiring import wire

            wire(server.app, self)
            self.forget_service.after_change = self._refit
            self.forget_service.start()

    def _refit(self) -> None:
        """Make again what a mark has just taken, adapters and the generator, in their turn."""
        try:
            again = to_fit_again(self.home, self.model.name, self.records)
        except SegUnlearnError as error:
            logger.error("nobody can say whether the generator is to be made again: %s", error)
            again = None
        if again is not None:
            self._once(again)
        try:
            info = self.model.registry.active()
            taken = to_refit(self.model.adapters, info, outdated=False) if info else []
        except SegUnlearnError as error:
            logger.error("nobody can say which sites are to be adapted again: %s", error)
            return
        request = {"model": SITE_ADAPT, "adapt_now": True, "refit": "forgotten"}
        if taken:
            self._once(request)

    @staticmethod
    def _once(request: Mapping[str, Any]) -> None:
        """Start a task, unless the same waits already."""
        waits = any(
            t["status"] == "SUBMITTED" and t["request"] == request
            for t in background.tasks("train")
        )
        if not waits:
            background.start("train", request)

    def datastore(self) -> StudiesDatastore:
        """Return the studies."""
        studies: StudiesDatastore = self._datastore
        return studies

    def info(self) -> dict[str, Any]:
        """Return what clients render; the trainer that ran last comes first in ``train_stats``."""
        meta: dict[str, Any] = super().info()
        stats = meta["train_stats"]
        last = self.records.last_run_as_task(*_TRAINERS_RUNS)
        first = last["request"]["model"] if last is not None else ""
        order = sorted(stats, key=lambda m: m != first)
        return {**meta, "train_stats": {m: stats[m] for m in order}}

    @property
    def forgetting(self) -> Forgetting:
        """Forget set, ledger, runs and outbox, for the routes."""
        return self.forget_service.forgetting

    def _active_sha256(self) -> str | None:
        active = self.model.registry.active()
        return active.sha256 if active else None

    # -- inference ------------------------------------------------------------------------------

    def label_values(self) -> dict[str, int]:
        """Value of each structure: of the active version, else of ``--conf labels``."""
        return self.model.label_values() or {n: i + 1 for i, n in enumerate(self.options.labels)}

    def shown_labels(self) -> dict[str, int]:
        """Value of each structure that clients offer; of the labels there while none is trained."""
        known = self.label_values()
        if known:
            return known
        try:
            studies = self.datastore()
            named = studies.values()
            if not named and isinstance(studies, DicomDatastore):
                named = {n: i + 1 for i, n in enumerate(studies.structures())}
            return named
        except UnavailableError:
            return {}

    def served_model(self, model: str) -> ActiveModel:
        """Return a model by its name.

        Raises
        ------
        NotFoundError
            It is not served here.
        """
        if model != self.model.name:
            raise NotFoundError(
                f"there is no model {model!r:.80}; models are {', '.join(self._infers)}."
            )
        return self.model

    def infer_task(self, model: str) -> Any:
        """Inference task of a model.

        Raises
        ------
        NotFoundError
            There is none of this name.
        """
        task = self._infers.get(model)
        if task is None:
            raise NotFoundError(
                f"there is no model {model!r:.80}; models are {', '.join(self._infers)}."
            )
        return task

    def submit_inference(self, work: Callable[[Callable[[], bool]], T], caller: str = "") -> Job[T]:
        """Run in the threads of inferences, so that nothing else waits for it.

        Parameters
        ----------
        work
            Is given a function that tells whether to stop.
        caller
            Who asks; callers take turns.

        Raises
        ------
        UnavailableError
            ``--conf queue`` inferences wait already.
        """
        return self.inferences.submit(work, caller)

    def infer(
        self, request: Mapping[str, Any], datastore: StudiesDatastore | None = None
    ) -> dict[str, Any]:
        """Segment one image.

        Parameters
        ----------
        request
            ``model``; ``image``: an id (text, never taken for a path) or, from our own side only,
            a ``Path``; ``save_label`` and ``label_tag``; options of the task.
        datastore
            The studies, by default the app's.

        Returns
        -------
        dict
            ``file``: the mask, which the caller deletes; ``label``: the id of the saved label, or
            the file again; ``tag``; ``params``.

        Raises
        ------
        NotFoundError
            There is no such model or image.
        ConflictError
            Nothing was trained yet.
        InvalidInputError
            An option is wrong, or the image cannot be read.
        """
        task = self.infer_task(str(request.get("model")))
        studies = datastore or self.datastore()
        image, tag = request.get("image"), check_prediction_tag(request.get("label_tag"))
        save = asks_to_save(request)
        if request.get("model") == MARKER:
            save = False  # its answer is no label
        if save and request.get("before"):
            raise InvalidInputError("before and save_label: what served before labels nothing.")
        if isinstance(image, Path):
            path, save, modality = image, False, "OT"
        elif isinstance(image, str) and image:
            record = studies.record(image)
            path, modality = Path(studies.get_image_uri(image)), record.modality
            request = {**request, "header": studies.header_of(image)}
        else:
            raise InvalidInputError("nothing to segment: give the id of an image.")
        image_id = image if isinstance(image, str) else None
        file, params = task({**request, "image": path, "image_id": image_id, "modality": modality})
        label = file
        if save:
            info = {"model": request["model"], "params": params}
            author = {"user": request["actor"]} if request.get("actor") else {}
            label = studies.save_label(str(image), file, tag, info | author)
        return {"label": label, "tag": tag, "file": file, "params": params}

    def infer_dicom_seg(self, request: Mapping[str, Any], user: str | None = None) -> Dataset:
        """Segment a series and wrap the mask as DICOM SEG.

        Raises
        ------
        InvalidInputError
            The studies are files.
        """
        studies = self.datastore()
        self.served_model(str(request.get("model")))
        if not isinstance(studies, DicomDatastore):
            raise InvalidInputError(
                "output=dicom_seg needs DICOM studies, these are files. Ask for output=image."
            )
        result = self.infer({**request, "result_extension": ".nii.gz", "result_dtype": None})
        file = Path(result["file"])
        try:
            mask = read_volume(file, label=True)
        finally:
            file.unlink(missing_ok=True)
        names = {v: n for n, v in result["params"]["label_names"].items()}
        return studies.as_segmentation(str(request["image"]), mask, names, result["params"], user)

    def infer_wsi(self, request: Mapping[str, Any], datastore: Any = None) -> None:
        """Refuse: the app segments radiology volumes."""
        raise NotFoundError("whole-slide images are not treated here; use /infer.")

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """Path of the active weights."""
        path: str | None = self.infer_task(model).get_path(validate)
        return path

    def model_info(self, model: str) -> dict[str, Any]:
        """Digest, time and version of the active weights."""
        version = self.served_model(model).version()
        self.model.check()
        return {
            "checksum": f"SHA256:{version.sha256}",
            "modified_time": int(version.weights.stat().st_mtime),
            **self.model.summary(),
            "train_stats": self._trainers[model].stats() if model in self._trainers else {},
        }

    # -- active learning, training, scoring -----------------------------------------------------

    def without_forgotten(self, cases: Sequence[Case]) -> list[Case]:
        """Cases that no live forget request names; the one filter of everything that learns."""
        return self.records.without_forgotten(cases)

    def uses_model(self, strategy: str) -> bool:
        """Whether a strategy runs the model."""
        return getattr(self._strategies.get(strategy), "uses_model", False)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the next image.

        Raises
        ------
        NotFoundError
            There is no such strategy.
        """
        strategy = str(request.get("strategy") or "random")
        task = self._strategies.get(strategy)
        if task is None:
            raise NotFoundError(
                f"there is no strategy {strategy!r:.80}; strategies are "
                f"{', '.join(self._strategies)}."
            )
        found: dict[str, Any] = task(request, self.datastore()) or {}
        if not found.get("id"):
            return {}
        return {**found, "path": self.datastore().get_image_uri(found["id"])}

    def trainer(self, model: str) -> Any:
        """Trainer by its name.

        Raises
        ------
        NotFoundError
            There is none of this name.
        """
        task = self._trainers.get(model)
        if task is None:
            raise NotFoundError(
                f"there is no trainer {model!r:.80}; trainers are {', '.join(self._trainers)}."
            )
        return task

    def ordinary_trainers(self) -> list[str]:
        """Trainers that the deprecated ``POST /train/`` may start."""
        return [m for m, task in self._trainers.items() if getattr(task, "ordinary", False)]

    def train_request(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check and coerce the request of a training; what a child process is given.

        Raises
        ------
        NotFoundError
            There is no such trainer.
        InvalidInputError
            An option is wrong.
        ConflictError
            No image has a finished label.
        """
        task = self.trainer(model)
        request: dict[str, Any] = {"model": model, **task.check(options)}
        if not self.datastore().get_labeled_images():
            raise ConflictError(
                "no image has a finished label yet. Annotate and submit some studies, then train."
            )
        return request

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train here and now; the platform calls it in a child process."""
        task = self.trainer(str(request.get("model")))
        result: dict[str, Any] = task(request, self.datastore())
        return result

    def scoring_methods(self) -> list[str]:
        """Names of the scoring methods."""
        return list(self._scoring_methods)

    def scoring_request(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check the request of a scoring; see ``segunlearn.app.requests``."""
        return check_scoring(method, options, self.scoring_methods())

    def batch_request(self, model: str, images: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check the request of a batch inference; see ``segunlearn.app.requests``.

        Raises
        ------
        NotFoundError, ConflictError
            A site is named that has no adapter, or one of other weights.
        """
        served = self.served_model(model)
        info = served.version()
        request = check_batch(model, images, options, self.datastore())
        choose_site(served.adapters, Aliases.read(self.home.sites), None, request["site"], info)
        return request

    # -- runs -----------------------------------------------------------------------------------

    def last_run_as_task(self, kind: str) -> dict[str, Any] | None:
        """Last run of the store in the shape of the platform's tasks, None when there is none."""
        return self.records.last_run_as_task(*(_TRAINERS_RUNS if kind == "train" else (kind,)))

    def cancel_runs(self, kind: str, stop: Callable[[float], T]) -> T:
        """Ask the running runs to stop, end their processes, and record them as cancelled.

        Parameters
        ----------
        kind
            Of the platform's task; an unlearning is a training there.
        stop
            Ends the processes; is given the seconds in which they may do so by themselves.
        """
        asked = self.records.cancel(*(_TRAINERS_RUNS if kind == "train" else (kind,)))
        polite = any(run.kind in (UNLEARN, SITE_ADAPT) for run in asked)
        stopped = stop(PATIENCE if polite else 0.0)
        if polite:
            settle(self.home, self.records)
        self.records.finish_cancelled(asked)
        return stopped
