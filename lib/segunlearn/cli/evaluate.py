"""``segunlearn evaluate``."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer
from rich.table import Table

from segunlearn.app.from_active import held_out_of
from segunlearn.cases import cases_from_folder, persons_of
from segunlearn.cli.assumed import assumed_for_images
from segunlearn.cli.common import (
    DEFAULT,
    DataOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    MirrorOption,
    ModalityOption,
    ModelOption,
    PeopleOption,
    RegexOption,
    StoreOption,
    axes_of,
    home_of,
    modality_of,
    people_of,
    print_found,
    print_json,
    progress_bar,
    stop_on_interrupt,
    version_of,
    warn,
    without_forgotten,
)
from segunlearn.errors import InvalidInputError


def evaluate(
    data: DataOption,
    home: HomeOption = DEFAULT,
    people: PeopleOption = None,
    person_regex: RegexOption = None,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    version: Annotated[str | None, typer.Option(help="Instead of the active version.")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only the people that 'train --holdout' kept out.")
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Of surface Dice, mm.")] = 1.0,
    store: StoreOption = "",
    mirror: MirrorOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure Dice, HD95 and surface Dice for each label and each person.

    Studies with a live forget request are left out.
    """
    from segunlearn.app.records import Records
    from segunlearn.evaluation import evaluate as run
    from segunlearn.inference import Segmenter

    if not math.isfinite(tolerance):
        raise InvalidInputError(f"--tolerance {tolerance}: give a length in mm, for example 1.")
    place = home_of(home)
    info = version_of(place, model, version)
    records = Records(place, store)
    warnings: list[str] = []
    cases = cases_from_folder(
        data, people_of(people, person_regex), modality=modality_of(modality), say=warnings.append
    )
    if held_out:
        pseudonyms = records.pseudonyms
        kept_out = held_out_of(info, pseudonyms)
        cases = [c for c in cases if pseudonyms.of(c.person) in kept_out]
        if not cases:
            raise InvalidInputError(
                f"{info.version} was trained without --holdout, or these are other people: "
                "none of them was kept out."
            )
    cases = without_forgotten(records, cases)
    segmenter = Segmenter.from_version(info, device, mirror_axes=axes_of("--mirror", mirror))
    with stop_on_interrupt() as interrupted, progress_bar(as_json) as bar:
        result = run(
            cases,
            segmenter,
            tolerance_mm=tolerance,
            progress=lambda done, total: bar("evaluate", done, total),
            cancel=interrupted,
        )
    warnings += assumed_for_images(result.assumed.get("CT", 0), result.assumed.get("MR", 0))
    if as_json:
        about = {"version": info.version, "sha256": info.sha256, "warnings": warnings}
        print_json({**about, **result.to_json()})
        return
    warn(warnings)
    table = Table(title=f"{info.version}: {len(cases)} images of {len(persons_of(cases))} people")
    for column in ("", "Dice", "HD95 mm", f"surface Dice {tolerance:g} mm"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, figures in result.per_label().items():
        table.add_row(name, *_row(figures))
    table.add_section()
    table.add_row("mean", *_row(result.mean()))
    print_found(table)
    worst = sorted(result.per_person().items(), key=lambda item: item[1]["dice"])[:3]
    print_found("lowest: " + ", ".join(f"{p} {f['dice']:.3f}" for p, f in worst))


def _row(figures: dict[str, Any]) -> list[str]:
    hd95 = figures["hd95_mm"]
    return [
        f"{figures['dice']:.3f}",
        "missed" if math.isinf(hd95) else f"{hd95:.2f}",
        f"{figures['surface_dice']:.3f}",
    ]
