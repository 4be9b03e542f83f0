"""``segunlearn replay``: the generator whose images stand for stored patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segunlearn.app.from_active import keep_out
from segunlearn.cases import Case, cases_from_folder
from segunlearn.cli.assumed import with_assumed
from segunlearn.cli.common import (
    DEFAULT,
    MOST_SEED,
    DeviceOption,
    HomeOption,
    JsonOption,
    ModalityOption,
    ModelOption,
    PeopleOption,
    RegexOption,
    StoreOption,
    StudiesOption,
    console,
    home_of,
    labelled_cases,
    modality_of,
    people_of,
    print_json,
    progress_bar,
    records_of,
    stop_on_interrupt,
    version_of,
    with_loss,
    without_forgotten,
)
from segunlearn.cli.tables import print_table
from segunlearn.cli.train import LOCK_SECONDS
from segunlearn.errors import InvalidInputError
from segunlearn.records.durable import write_durably

if TYPE_CHECKING:  # they load torch
    from pydicom.dataset import Dataset

    from segunlearn.app.options import Home
    from segunlearn.app.records import Records
    from segunlearn.app.replay_run import GeneratorRun
    from segunlearn.records.versions import VersionInfo
    from segunlearn.replay.tagging import Tags

replay = typer.Typer(
    no_args_is_help=True,
    help="Train a generator whose images stand for stored patients; make it forget a feature.",
)

FolderOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with images/; labels/ may be there and are not read."),
]


@replay.command()
def train(
    data: FolderOption = None,
    studies: StudiesOption = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training.")] = 1500,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 16,
    latent: Annotated[int, typer.Option(min=1, max=4096, help="Numbers of a latent vector.")] = 64,
    unseen: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images of other people, to measure what the generator remembers."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of every random choice.")] = 0,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a generator on images of the site, but those marked for forgetting or kept out.

    People whom 'train --holdout' kept out of the served version stay out: it is judged on them.
    It takes the place of earlier generators, whose weights are destroyed: run it again after a
    mark. It goes on where it was when it is started again with the same images and options.
    """
    from segunlearn.app.records import Records
    from segunlearn.app.replay_run import ReplayRun
    from segunlearn.replay.training import GeneratorSettings

    place = home_of(home)
    base, records = version_of(place, model, None), Records(place, store)
    cases = labelled_cases(
        data, studies, place, model, "", people, person_regex, modality, labelled=False
    )
    rule = people_of(people, person_regex)
    others = (
        cases_from_folder(unseen, rule, modality=modality_of(modality), labelled=False)
        if unseen
        else []
    )
    run = ReplayRun(
        base, model, place, records, "command line", device,
        settings=GeneratorSettings(steps=steps, batch_size=batch_size, seed=seed),
        shape={"latent": latent}, unseen=others,
    )  # fmt: skip

    info, warnings = _executed(run, lambda: _usable(cases, base, records), as_json)
    figures = {"memory": info.details["memory"], "images": len(run.cases), "warnings": warnings}
    _tell(run, info, figures, as_json)


@replay.command("list")
def list_generators(
    home: HomeOption = DEFAULT,
    model: ModelOption = "segmentation",
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the generators of a model: which replays, which knows what is to be forgotten."""
    from segunlearn.app.generator_store import Generators, knows

    place = home_of(home)
    records = records_of(place, store)
    generators = Generators(place, model)
    newest, targets = generators.newest(), records.forget_set.live_targets()

    def state(info: VersionInfo) -> str:
        if not info.weights.is_file():
            return "destroyed"
        if knows(info, targets, records.pseudonyms):
            return "knows what is to be forgotten"
        return "replays" if newest is not None and newest.version == info.version else "available"

    lines = [
        {"version": g.version, "sha256": g.sha256, "created": g.created, "state": state(g),
         "run_id": g.run_id, **g.details}
        for g in generators.versions()
    ]  # fmt: skip
    if as_json:
        print_json({"model": model, "generators": lines})
        return
    if not lines:
        console.print(f"{place.root}: the model {model!r} has no generator.")
        return
    keys = ("version", "created", "state", "feature")
    rows = [[line.get(k, "") for k in keys] for line in lines]
    print_table(("version", "created", "state", "without"), rows)


@replay.command()
def page(
    out: Annotated[Path, typer.Argument(help="HTML file to write.")],
    data: FolderOption = None,
    studies: StudiesOption = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    samples: Annotated[int, typer.Option(min=0, max=512, help="Generated images shown.")] = 200,
    most: Annotated[int, typer.Option(min=1, help="Real images shown, at most.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the generated images.")] = 0,
    store: StoreOption = "",
) -> None:
    """Write a page on which a person clicks the images that show a feature.

    It saves a list for 'replay forget-feature --tags'. It shows images of patients, named by
    pseudonyms: keep it where the images are kept.
    """
    from segunlearn.app.replay_run import FeatureRun, load
    from segunlearn.replay.memory import images_of
    from segunlearn.replay.tagging import tagging_page

    place = home_of(home)
    base, records = version_of(place, model, None), records_of(place, store)
    run = FeatureRun(base, model, place, records)
    info = run.generators.usable(records.forget_set.live_targets(), records.pseudonyms)
    generator = load(info)
    generator.config.check_fits(run.config)
    shown = []
    if data is not None or studies:
        cases = labelled_cases(
            data, studies, place, model, "", people, person_regex, modality, labelled=False
        )
        run.on_progress = with_assumed(lambda _: None, [], quiet=False)
        found = run.studies(_usable(cases, base, records)[:most])
        images = images_of(generator, found, run.config)
        names = [records.pseudonyms.of(s.series) for s in found]
        shown = list(zip(names, images, strict=True))
    html = tagging_page(generator, info.sha256, shown, samples=samples, seed=seed)
    write_durably(out, html.encode())
    console.print(f"{out}: {samples} generated and {len(shown)} real images")


@replay.command()
def forget_feature(
    data: FolderOption = None,
    studies: StudiesOption = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    tags: Annotated[
        Path | None,
        typer.Option(help="CSV with the columns image and feature (yes or no), as a page saves."),
    ] = None,
    attribute: Annotated[
        str,
        typer.Option(
            help="Instead of --tags: DICOM keyword and value of images that have the feature, as "
            "BurnedInAnnotation=YES. Needs --studies."
        ),
    ] = "",
    feature: Annotated[str, typer.Option(help="What people call the feature.")] = "feature",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the fine-tuning.")] = 600,
    weight: Annotated[
        float, typer.Option(min=0.01, help="Of what takes out, beside what keeps.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of every random choice.")] = 0,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make the generator forget a visual feature: burned-in text, a marker, an artefact.

    The direction of the feature among the latents is found from tagged images, real and generated.
    The generator is replaced by one whose images do not show it.
    """
    from segunlearn.app.replay_run import FeatureRun
    from segunlearn.replay.feature import FeatureSettings
    from segunlearn.replay.tagging import Tags, read_tags

    if (tags is None) == (not attribute):
        raise InvalidInputError("give either --tags or --attribute: which images show the feature.")
    place = home_of(home)
    base, records = version_of(place, model, None), records_of(place, store)
    cases: Sequence[Case] = []
    if data is not None or studies:
        cases = labelled_cases(
            data, studies, place, model, "", people, person_regex, modality, labelled=False
        )
        cases = _usable(cases, base, records)
    if tags is not None:
        try:
            found = read_tags(tags.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{tags}: is not UTF-8; save it as CSV in UTF-8.") from error
    else:
        found = Tags(_by_attribute(attribute, studies, place, model, cases))
    cases, by_series = _tagged(cases, found, records)
    run = FeatureRun(
        base, model, place, records, "command line", device,
        settings=FeatureSettings(steps=steps, weight=weight, seed=seed),
        tagged=by_series, samples=found.samples, feature=feature,
    )  # fmt: skip
    info, warnings = _executed(run, lambda: cases, as_json)
    _tell(run, info, {**info.details, "warnings": warnings}, as_json)


def _usable(cases: Sequence[Case], base: VersionInfo, records: Records) -> list[Case]:
    """Cases that may shape a generator: neither marked for forgetting nor kept out."""
    kept = without_forgotten(records, cases)
    return keep_out(kept, base, records.pseudonyms, console.print)[0]


def _tagged(
    cases: Sequence[Case], tags: Tags, records: Records
) -> tuple[list[Case], dict[str, bool]]:
    """Cases that are tagged, by series or its pseudonym, and whether they show the feature."""
    names = {c.series: c for c in cases} | {records.pseudonyms.of(c.series): c for c in cases}
    unknown = [name for name in tags.images if name not in names]
    if unknown:
        raise InvalidInputError(
            f"{len(unknown)} of {len(tags.images)} tagged images are not here, are marked for "
            "forgetting, or show people whom 'train --holdout' kept out. Give the images that were "
            "tagged with --data or --studies."
        )
    by_series = {names[name].series: has for name, has in tags.images.items()}
    return [c for c in cases if c.series in by_series], by_series


def _by_attribute(
    attribute: str, studies: str, home: Home, model: str, cases: Sequence[Case]
) -> dict[str, bool]:
    """Whether a header of each series holds a value, among others where it holds several."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.multival import MultiValue

    from segunlearn.app.datastores import DicomDatastore, open_datastore
    from segunlearn.app.options import AppOptions

    keyword, _, value = attribute.partition("=")
    if not keyword or not value or not studies:
        raise InvalidInputError("--attribute Keyword=value needs --studies with DICOM images.")
    if tag_for_keyword(keyword) is None:
        raise InvalidInputError(
            f"--attribute: DICOM knows no keyword {keyword!r}; give one of PS3.6, as "
            "BurnedInAnnotation."
        )
    options = AppOptions(home=home.root, model=model)
    store = open_datastore(studies, options, home, label_values=dict, keep=list)
    if not isinstance(store, DicomDatastore):
        raise InvalidInputError("--attribute needs --studies with DICOM images.")
    wanted = value.strip().lower()

    def shows(header: Dataset) -> bool:
        found = header.get(keyword, "")
        values = found if isinstance(found, MultiValue) else [found]
        return any(str(v).strip().lower() == wanted for v in values)

    return {c.series: any(map(shows, store.archive.headers(c.series))) for c in cases}


def _executed(
    run: GeneratorRun, select: Callable[[], Sequence[Case]], as_json: bool
) -> tuple[VersionInfo, list[str]]:
    """Do the run; gives the generator, and warnings about the images."""
    from segunlearn.app.locks import training_lock

    with (
        training_lock(run.home, run.model, "command line", LOCK_SECONDS),
        stop_on_interrupt() as interrupted,
        progress_bar(as_json) as bar,
    ):
        warnings: list[str] = []
        run.on_progress = with_assumed(with_loss(bar), warnings, quiet=as_json)
        run.stopped = interrupted
        return run.execute(select), warnings


def _tell(run: GeneratorRun, info: VersionInfo, figures: dict[str, Any], as_json: bool) -> None:
    report = str(info.path / "report.html")
    told = {"generator": info.version, "sha256": info.sha256, "run_id": run.run_id,
            "report": report, **figures}  # fmt: skip
    if as_json:
        print_json(told)
    else:
        console.print(f"generator {info.version} replays from now on; pictures: {report}")
