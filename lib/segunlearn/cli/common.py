"""What the commands share: options, progress bars, JSON."""

from __future__ import annotations

import getpass
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from segunlearn.app.options import DEFAULT_HOME, Home
from segunlearn.cases import Case, People, cases_from_folder
from segunlearn.errors import ConflictError, InvalidInputError, NotFoundError
from segunlearn.records.runs import Progress as RunProgress
from segunlearn.records.version_info import is_model_name
from segunlearn.records.versions import VersionInfo, VersionRegistry

if TYPE_CHECKING:  # it loads torch
    from segunlearn.app.records import Records


def _model_name(text: str) -> str:
    """Refuse a name of a model before folders and locks are made of it."""
    if not is_model_name(text):
        raise InvalidInputError(f"--model {text!r}: use letters, digits, '-' and '_'.")
    return text


ModelOption = Annotated[str, typer.Option(help="Name of the model.", callback=_model_name)]
HomeOption = Annotated[
    Path,
    typer.Option(envvar="SEGUNLEARN_HOME", help="Folder of the store, the models and the caches."),
]
DataOption = Annotated[
    Path, typer.Option(help="Folder with images/ and labels/ (NIfTI or NRRD, same file names).")
]
#: Largest seed: of the server's options, too, and what every library takes.
MOST_SEED = 2**31 - 1
StoreOption = Annotated[
    str, typer.Option(help="URL of the store; without it, SQLite in the home folder.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")]
MirrorOption = Annotated[
    str,
    typer.Option(
        help="RAS axes: average over mirror images along them, for example R; each doubles the "
        "time. For models trained with the same --flip."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ReferencesOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=20, help="How many full references, with --with-reference; by default 2."
    ),
]
PeopleOption = Annotated[
    Path | None,
    typer.Option(help="CSV with the columns file, person and optionally study and series."),
]
RegexOption = Annotated[
    str | None, typer.Option(help="Its first group is the person, searched in the file's name.")
]
ModalityOption = Annotated[
    str,
    typer.Option(
        help="CT or MR, which decides the normalisation; auto: what the model's training was told, "
        "else CT where 1 % of the voxels lie below -100 HU, with a warning that says what was "
        "assumed (signed MR can look like CT)."
    ),
]

#: Where the labelled cases lie, of commands that take either of the two; see ``labelled_cases``.
LabelledOption = Annotated[
    Path | None, typer.Option(help="Folder with images/ and labels/, as for 'segunlearn train'.")
]
StudiesOption = Annotated[
    str, typer.Option(help="Instead of --data: DICOMweb URL or folder, as for 'serve'.")
]

DEFAULT = DEFAULT_HOME
#: Progress goes to stderr, so that stdout can be piped.
console = Console(stderr=True, markup=False)


def print_found(found: RenderableType) -> None:
    """Print what was asked for, a table for example, to standard output."""
    Console(markup=False).print(found)


def found_width() -> int:
    """Letters in a line of standard output; 80 in a pipe."""
    return Console().width


def home_of(path: Path) -> Home:
    """Home folder of an option."""
    return Home(path.expanduser().resolve())


def no_store_in(place: Home) -> InvalidInputError:
    """Make the error of a home that nothing was ever written to."""
    return InvalidInputError(f"{place.root}: no store is here. Name the home of the server.")


def people_of(table: Path | None, regex: str | None) -> People:
    """Rule from files to persons."""
    return People(regex=regex, table=table)


def axes_of(option: str, text: str) -> tuple[int, ...]:
    """RAS axes 0, 1 and 2 of an option's letters."""
    try:
        return tuple(sorted({"RAS".index(c) for c in text.upper()}))
    except ValueError as error:
        raise InvalidInputError(f"{option} {text!r}: use the letters R, A and S.") from error


#: Of images, as DICOM writes them (PS3.3 C.7.3.1.1.1); only CT is normalised in its own way.
_MODALITIES = {"CT", "MR", "PT", "NM", "US", "XA", "CR", "DX", "MG", "OP", "OT"}


def modality_of(text: str) -> str:
    """DICOM Modality of an option; OT lets model or voxels tell (``transforms.modality_for``).

    Raises
    ------
    InvalidInputError
        It is no modality.
    """
    if text.lower() == "auto":
        return "OT"
    if text.upper() not in _MODALITIES:
        raise InvalidInputError(f"--modality {text!r}: use CT, MR or auto.")
    return text.upper()


def warn(sentences: Sequence[str]) -> None:
    """Print warnings on stderr."""
    for sentence in sentences:
        console.print(f"warning: {sentence}", highlight=False)


def version_of(home: Home, model: str, version: str | None) -> VersionInfo:
    """Version by name, or the active one.

    Raises
    ------
    NotFoundError
        There is none.
    """
    registry = VersionRegistry(home.model(model))
    info = registry.get(version) if version else registry.active()
    if info is None:
        raise NotFoundError(
            f"{home.root}: no version of the model {model!r} is active. Train one first: "
            "segunlearn train --data DIR --home DIR."
        )
    return info


def cases_of_studies(
    studies: str,
    home: Home,
    model: str,
    version: VersionInfo,
    people: Path | None,
    regex: str | None,
) -> Sequence[Case]:
    """Finished labels of a server's studies, those marked for forgetting too.

    Parameters
    ----------
    studies
        DICOMweb URL or folder, as for ``serve``.
    home, model
        Of the server.
    version
        Whose label values are meant.
    people, regex
        Who is shown in files.

    Raises
    ------
    InvalidInputError
        There are no such studies.
    UnavailableError
        The archive cannot be reached.
    """
    from segunlearn.app.datastores import open_datastore
    from segunlearn.app.options import AppOptions

    values = {name: i + 1 for i, name in enumerate(version.config["labels"])}
    options = AppOptions(
        home=home.root, model=model, people=str(people or ""), person_regex=regex or ""
    )
    found = open_datastore(
        studies, options, home, label_values=lambda: values, keep=list
    ).trainable(values=values)
    for reason in found.skipped.values():
        console.print(f"a labelled image is left out: {reason}")
    return found.cases


def labelled_cases(
    data: Path | None,
    studies: str,
    home: Home,
    model: str,
    version: str,
    people: Path | None,
    regex: str | None,
    modality: str,
    *,
    labelled: bool = True,
) -> list[Case]:
    """Every labelled case of --data or of --studies, those marked for forgetting too.

    Parameters
    ----------
    data, studies, people, regex, modality
        The options of these names.
    home, model, version
        Whose label values are meant, where the cases are a server's; empty: the active version.
    labelled
        False: the files of --data need no labels, and none is read.

    Raises
    ------
    InvalidInputError
        Not just one of the two is given, or the cases cannot be read.
    NotFoundError
        There is no such version.
    UnavailableError
        The archive cannot be reached.
    """
    if data is not None and not studies:
        rule = people_of(people, regex)
        return cases_from_folder(
            data,
            rule,
            modality=modality_of(modality),
            labelled=labelled,
            say=lambda sentence: warn([sentence]),
        )
    if studies and data is None:
        info = version_of(home, model, version or None)
        return list(cases_of_studies(studies, home, model, info, people, regex))
    what = "labelled cases" if labelled else "images"
    raise InvalidInputError(f"give either --data or --studies: where the {what} lie.")


def records_of(home: Home, store: str) -> Records:
    """Open the records of a home; each change of a forget request waits to be told to the PACS.

    Ids that are no UIDs, as of files, name nothing there and are not told.

    Raises
    ------
    InvalidInputError
        None were ever written there: probably another home is meant.
    """
    from segunlearn.app.records import Records

    if not home.database.is_file() and not store:
        raise no_store_in(home)
    return Records(home, store, reports=True)


def without_forgotten(records: Records, cases: Sequence[Case]) -> list[Case]:
    """Leave out what a live forget request names, and say how many.

    Raises
    ------
    ConflictError
        Nothing is left.
    """
    kept = records.without_forgotten(cases)
    if len(kept) < len(cases):
        console.print(f"{len(cases) - len(kept)} images are marked for forgetting: left out")
    if not kept:
        raise ConflictError("every labelled image is marked for forgetting; nothing is left.")
    return kept


def given(context: typer.Context) -> dict[str, str]:
    """Name on the command line, by parameter, of each option that a person gave there."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.name or ""] = parameter.opts[0]
    return found


def operator() -> str:
    """Name of the account that works on the command line."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        return "unknown account"


def actor() -> str:
    """Who is named in a request's history and as the one who asked for a run."""
    return f"{operator()} (command line)"


def print_json(data: Any) -> None:
    """Write JSON to stdout."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=str))


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr; gives a function of (what, done, total)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet,
    ) as bar:
        task = bar.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update


def with_loss(bar: Callable[[str, int, int], None]) -> Callable[[RunProgress], None]:
    """Show a run's progress on a bar: its phase, and its loss where it has one."""

    def show(progress: RunProgress) -> None:
        loss = progress.metrics.get("loss")
        text = progress.phase + ("" if loss is None else f"  loss {loss:.3f}")
        bar(text, progress.step, progress.total)

    return show


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a polite stop; a second one ends the program at once."""
    stopped = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def references_of(with_reference: bool, references: int | None) -> int:
    """Count the full references that are asked for.

    Raises
    ------
    InvalidInputError
        A number without ``--with-reference``.
    """
    if with_reference:
        return 2 if references is None else references
    if references is not None:
        raise InvalidInputError(
            f"--references {references}: full references are only trained with --with-reference. "
            "Add it, or leave the number out."
        )
    return 0


def names_of(text: str) -> tuple[str, ...]:
    """Names separated by commas.

    Raises
    ------
    InvalidInputError
        Two are the same, or one is empty.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise InvalidInputError(f"--labels {text!r}: give different names separated by commas.")
    return names
