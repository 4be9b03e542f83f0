"""``segunlearn meta-train``."""

from __future__ import annotations

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
    cases_of_studies,
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
    with_loss,
    without_forgotten,
)
from segunlearn.cli.train import LOCK_SECONDS, RecipeName, names_in
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import InvalidInputError


class LearnName(StrEnum):
    """What is meta-learned."""

    BOTH = "both"
    MAML = "maml"
    GENERATOR = "generator"


class OrderName(StrEnum):
    """Of MAML's gradient."""

    SECOND = "second"
    FIRST = "first"
    REPTILE = "reptile"


class InnerName(StrEnum):
    """What MAML's steps change."""

    DECODER = "decoder"
    HEAD = "head"
    ALL = "all"


def meta_train(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with one folder a site, each with images/ and labels/."),
    ] = None,
    studies: Annotated[
        str,
        typer.Option(
            help="Instead of --data: DICOMweb URL or folder, as for 'serve'; sites are told by "
            "the images' headers. Needs --from-active."
        ),
    ] = "",
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    labels: Annotated[str, typer.Option(help="Names of label 1, 2, …, separated by commas.")] = "",
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    recipe: Annotated[
        RecipeName, typer.Option(help="How to train the joint model.")
    ] = RecipeName.DEFAULT,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the joint model; instead of the recipe's.")
    ] = None,
    from_active: Annotated[
        bool,
        typer.Option(
            "--from-active",
            help="Start the joint model from the active version: its weights, labels, network and "
            "people kept out.",
        ),
    ] = False,
    learn: Annotated[
        LearnName,
        typer.Option(
            help="MAML's start and rates, the generator, or the generator and steps that follow it."
        ),
    ] = LearnName.BOTH,
    iterations: Annotated[
        int,
        typer.Option(
            min=1,
            help="Outer steps of MAML; the generator takes 4 times as many, at a quarter each.",
        ),
    ] = 800,
    order: Annotated[OrderName, typer.Option(help="Of MAML's gradient.")] = OrderName.SECOND,
    inner_set: Annotated[
        InnerName, typer.Option(help="What MAML's steps change.")
    ] = InnerName.DECODER,
    inner_steps: Annotated[int, typer.Option(min=1, max=20, help="MAML's steps.")] = 3,
    virtual_sites: Annotated[
        bool,
        typer.Option(help="Add made-up looks and label conventions; needed below some 20 sites."),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of every random choice.")] = 0,
    store: StoreOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a model on several sites so that 'segunlearn adapt' fits it to another in a few steps.

    First the joint model is trained, which serves every site without an adapter and becomes the
    active version; then what adapting starts from. Both go on where they were when the command is
    started again with the same data and options. Studies with a live forget request are left out.
    """  # fmt: skip
    from segunlearn.app.locks import training_lock
    from segunlearn.app.meta_run import MetaTrainingRun, check_sites, meta_settings, with_sites
    from segunlearn.app.records import Records
    from segunlearn.app.site_choice import Aliases
    from segunlearn.app.training_run import TrainingRun
    from segunlearn.networks import ModelConfig
    from segunlearn.training import planning

    place, chosen = home_of(home), planning.recipe(recipe.value)
    settings = replace(chosen.settings, seed=seed, device=device)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    meta = meta_settings(
        learn=learn.value, iterations=iterations, order=order.value, inner_set=inner_set.value,
        inner_steps=inner_steps, virtual_sites=virtual_sites, seed=seed,
    )  # fmt: skip
    parent = version_of(place, model, None) if from_active else None
    if parent is not None and labels:
        raise InvalidInputError("--labels: --from-active keeps the labels of the active version.")
    if (data is None) == (not studies):
        raise InvalidInputError("give either --data or --studies: where the labelled cases lie.")
    warnings: list[str] = []
    if data is not None:
        cases = _of_folders(data, modality, people, person_regex, warnings)
        warn([] if as_json else warnings)
    elif parent is not None:
        found = cases_of_studies(studies, place, model, parent, people, person_regex)
        cases = with_sites(found, lambda c: SiteKey.parse(c.site), Aliases.read(place.sites))
    else:
        raise InvalidInputError("--studies needs --from-active, which says what the labels mean.")
    records = Records(place, store)
    pseudonyms = records.pseudonyms
    held_out = held_out_of(parent, pseudonyms)

    def select(_run: TrainingRun) -> tuple[Sequence[Case], ModelConfig]:
        kept = without_forgotten(records, cases)
        kept, _ = keep_out(kept, parent, pseudonyms, console.print)
        kept = with_fitted(kept, parent, records.ledger, console.print)
        check_sites(kept, settings, meta)
        if parent is not None:
            return kept, ModelConfig.from_json(parent.config)
        names = names_of(labels) if labels else names_in(data or Path(), kept)
        return kept, planning.plan(kept, names, name=model, recipe=chosen)

    with (
        training_lock(place, model, "command line", LOCK_SECONDS),
        stop_on_interrupt() as interrupted,
        progress_bar(as_json) as bar,
    ):
        check_still_active(place, model, parent)
        run = MetaTrainingRun(
            model=model, home=place, records=records, settings=settings, parent=parent,
            requested_by="command line", stopped=interrupted, meta=meta,
            on_progress=with_assumed(with_loss(bar), warnings, quiet=as_json),
            details=held_out_details(held_out, pseudonyms),
        )  # fmt: skip
        version, result = run.execute(select)
    figures: dict[str, Any] = {
        "version": version.version, "sha256": version.sha256, "run_id": run.run_id,
        "best_dice": result.best_dice, "train_cases": len(result.train_cases),
        "val_cases": len(result.val_cases), "held_out_people": len(held_out),
        "meta_model": version.details["meta_model"], "warnings": warnings,
    }  # fmt: skip
    if as_json:
        print_json(figures)
        return
    known = version.details["meta_model"]
    console.print(
        f"{version.version} is active, and can be adapted by {', '.join(known['methods'])} "
        f"(learned from {known['sites']} sites, {len(result.train_cases)} images)"
    )


def _of_folders(
    root: Path, modality: str, people: Path | None, regex: str | None, warnings: list[str]
) -> list[Case]:
    """Cases of every site's folder, with the folder's name as their site; says what is left out."""
    rule, cases = people_of(people, regex), []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else ():
        told: list[str] = []
        found = cases_from_folder(folder, rule, modality=modality_of(modality), say=told.append)
        warnings += [f"{folder.name}: {sentence}" for sentence in told]
        cases += [replace(case, site=folder.name) for case in found]
    if not cases:
        raise InvalidInputError(
            f"{root}: no folder of a site in it, each with images/ and labels/."
        )
    if len({c.series for c in cases}) < len(cases):
        raise InvalidInputError(
            f"{root}: two sites hold a file of the same name. Give every image a name of its own: "
            "forget requests find it by that."
        )
    return cases
