"""``segunlearn train``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from segunlearn.app.from_active import (
    check_still_active,
    held_out_details,
    held_out_of,
    keep_out,
    with_fitted,
)
from segunlearn.cases import Case, cases_from_folder, persons_of, split_by_person
from segunlearn.cli.assumed import with_assumed
from segunlearn.cli.common import (
    DEFAULT,
    MOST_SEED,
    DataOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    ModalityOption,
    ModelOption,
    PeopleOption,
    RegexOption,
    StoreOption,
    axes_of,
    console,
    home_of,
    modality_of,
    names_of,
    people_of,
    print_json,
    progress_bar,
    stop_on_interrupt,
    version_of,
    warn,
    without_forgotten,
)
from segunlearn.errors import InvalidInputError
from segunlearn.records.versions import VersionInfo

#: To wait for another training of the model that is about to end.
LOCK_SECONDS = 1.0


class RecipeName(StrEnum):
    """Recipes of ``segunlearn.training.planning``."""

    DEFAULT = "default"
    LONG = "long"
    SAMPLE = "sample"


def train(
    data: DataOption,
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    labels: Annotated[str, typer.Option(help="Names of label 1, 2, …, separated by commas.")] = "",
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    recipe: Annotated[RecipeName, typer.Option(help="How to train.")] = RecipeName.DEFAULT,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    flip: Annotated[
        str, typer.Option(help="RAS axes to mirror patches along, for example R; none by default.")
    ] = "",
    holdout: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.9, help="Share of the people kept out, for 'evaluate --held-out'."
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of every random choice.")] = 0,
    from_active: Annotated[
        bool,
        typer.Option(
            "--from-active",
            help="Start from the active version: its weights, labels, network and people kept out.",
        ),
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="As the active version, but from random weights: after a study was marked, the "
            "version without it, which 'audit run' can hold against the one with it.",
        ),
    ] = False,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a model on a folder, and make it the active version.

    A stopped training goes on from its last epoch when it is started again with the same data and
    options. Studies with a live forget request are left out.
    """
    from segunlearn.app.locks import training_lock
    from segunlearn.app.records import Records
    from segunlearn.app.training_run import TrainingRun
    from segunlearn.networks import ModelConfig
    from segunlearn.records.runs import Progress
    from segunlearn.training import planning

    place, chosen = home_of(home), planning.recipe(recipe.value)
    changes: dict[str, Any] = {"seed": seed, "device": device}
    changes |= {
        key: value
        for key, value in (
            ("epochs", epochs), ("batch_size", batch_size), ("learning_rate", learning_rate),
        )
        if value is not None
    }  # fmt: skip
    settings = replace(chosen.settings, **changes)
    if flip:
        settings = replace(
            settings, augmentation=replace(settings.augmentation, flip_axes=axes_of("--flip", flip))
        )
    left_out: list[str] = []
    cases = cases_from_folder(
        data, people_of(people, person_regex), modality=modality_of(modality), say=left_out.append
    )
    warn([] if as_json else left_out)
    names = names_of(labels) if labels else ()
    if from_active and again:
        raise InvalidInputError("--from-active and --again: give one, they differ in the weights.")
    like = version_of(place, model, None) if from_active or again else None
    parent = like if from_active else None
    if like is not None:
        _check_against_parent(like, names, holdout, "--again" if again else "--from-active")
    records = Records(place, store)
    pseudonyms = records.pseudonyms
    held_out = held_out_of(like, pseudonyms)
    if holdout > 0:
        cases, kept_out = split_by_person(cases, (1 - holdout, holdout), seed)
        held_out = {pseudonyms.of(person) for person in persons_of(kept_out)}

    def select(_run: TrainingRun) -> tuple[Sequence[Case], ModelConfig]:
        kept = without_forgotten(records, cases)
        kept, _ = keep_out(kept, like, pseudonyms, console.print)
        kept = with_fitted(kept, parent, records.ledger, console.print)
        if like is not None:
            return kept, ModelConfig.from_json(like.config)
        return kept, planning.plan(kept, names or names_in(data, kept), name=model, recipe=chosen)

    with (
        training_lock(place, model, "command line", LOCK_SECONDS),
        stop_on_interrupt() as interrupted,
        progress_bar(as_json) as bar,
    ):
        check_still_active(place, model, like)
        warnings: list[str] = []

        def show(progress: Progress) -> None:
            figures = progress.metrics
            text = progress.phase
            if "epoch" in figures:
                text += f"  epoch {figures['epoch']:.0f}/{settings.epochs}"
            for key, name in (("loss", "loss"), ("val_dice", "Dice")):
                if key in figures:
                    text += f"  {name} {figures[key]:.3f}"
            bar(text, progress.step, progress.total)

        run = TrainingRun(
            model=model, home=place, records=records, settings=settings, parent=parent,
            requested_by="command line", stopped=interrupted,
            on_progress=with_assumed(show, warnings, quiet=as_json),
            details=held_out_details(held_out, pseudonyms),
        )  # fmt: skip
        version, result = run.execute(select)
    figures = {
        "version": version.version, "sha256": version.sha256, "run_id": run.run_id,
        "best_dice": result.best_dice, "epochs": result.epochs_done, "seconds": result.seconds,
        "train_cases": len(result.train_cases), "val_cases": len(result.val_cases),
        "held_out_people": len(held_out), "warnings": left_out + warnings,
    }  # fmt: skip
    if as_json:
        print_json({**figures, "curve": result.curve})
        return
    dice = (
        "not validated" if result.best_dice is None else f"validation Dice {result.best_dice:.3f}"
    )
    console.print(
        f"{version.version} is active ({dice}, {len(result.train_cases)} training and "
        f"{len(result.val_cases)} validation images, {result.seconds:.0f} s)"
    )


def _check_against_parent(
    parent: VersionInfo, names: tuple[str, ...], holdout: float, option: str
) -> None:
    """Refuse options that the parent has settled."""
    known = tuple(parent.config.get("labels", ()))
    if names and names != known:
        raise InvalidInputError(
            f"--labels {','.join(names)}: {parent.version} knows {','.join(known)}, and "
            f"{option} keeps them. Leave out one of both options."
        )
    if holdout > 0:
        raise InvalidInputError(
            f"--holdout: {parent.version} has perhaps seen these people. With {option} the people "
            "that it kept out stay out; leave --holdout away."
        )


def names_in(data: Path, cases: Sequence[Case]) -> tuple[str, ...]:
    """Names of dataset.json (Medical Segmentation Decathlon), else label_1, label_2, …."""
    described = data / "dataset.json"
    if described.is_file():
        try:
            table = json.loads(described.read_text(encoding="utf-8"))["labels"]
            pairs = sorted((int(k), str(v)) for k, v in table.items() if int(k) > 0)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InvalidInputError(
                f"{described}: has no readable 'labels' ({error}). Name them with --labels."
            ) from error
        if [value for value, _ in pairs] == list(range(1, len(pairs) + 1)):
            return tuple(name for _, name in pairs)
        raise InvalidInputError(f"{described}: labels must be 1, 2, … without gaps.")
    import numpy as np

    from segunlearn.volumes import read_volume

    found: set[int] = set()
    for case in cases:
        if case.label is not None:
            found.update(np.unique(read_volume(case.label, label=True).array).tolist())
    values = sorted(found - {0})
    if not values:
        raise InvalidInputError(f"{data}: every label map is empty. Annotate something first.")
    if values != list(range(1, len(values) + 1)):
        shown = ", ".join(map(str, values[:10])) + (", …" if len(values) > 10 else "")
        raise InvalidInputError(
            f"{data}: label values found: {shown}; number the structures 1, 2, … without gaps, or "
            "name them (--labels)."
        )
    return tuple(f"label_{i}" for i in values)
