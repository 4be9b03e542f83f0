"""``segunlearn infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydicom.dataset import Dataset

from segunlearn.cli.assumed import assumed_sentence
from segunlearn.cli.common import (
    DEFAULT,
    DeviceOption,
    HomeOption,
    JsonOption,
    MirrorOption,
    ModalityOption,
    ModelOption,
    axes_of,
    console,
    home_of,
    modality_of,
    print_json,
    progress_bar,
    stop_on_interrupt,
    version_of,
    warn,
)
from segunlearn.errors import InvalidInputError
from segunlearn.volumes import SUFFIXES


def infer(
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="NIfTI or NRRD file, or folder of one DICOM series."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Mask: .nii.gz, .nii, .nrrd, or .dcm for DICOM SEG."),
    ],
    home: HomeOption = DEFAULT,
    modality: ModalityOption = "auto",
    model: ModelOption = "segmentation",
    version: Annotated[str | None, typer.Option(help="Instead of the active version.")] = None,
    site: Annotated[
        str,
        typer.Option(
            help="Site whose adapter segments: a name or key, or base (none) for the model itself; "
            "auto: by the DICOM header, as the server does."
        ),
    ] = "auto",
    mirror: MirrorOption = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Segment one image; the mask lies on the image's own grid."""
    from segunlearn.app.adapter_store import SiteAdapters
    from segunlearn.app.site_choice import Aliases, choose_site
    from segunlearn.dicom.segmentation import Algorithm, write_segmentation
    from segunlearn.dicom.series import volume_from_datasets
    from segunlearn.dicom.site import SiteKey
    from segunlearn.inference import Segmenter
    from segunlearn.records.durable import write_durably
    from segunlearn.transforms import modality_for
    from segunlearn.volumes import read_volume, write_volume

    as_dicom = output.suffix.lower() == ".dcm"
    if not as_dicom and not output.name.endswith(SUFFIXES):
        raise InvalidInputError(f"{output.name}: end it in {', '.join(SUFFIXES)} or .dcm.")
    if output.is_dir():
        raise InvalidInputError(f"{output.name}: is a folder. Name a file to write.")
    if output.resolve() == source.resolve():
        raise InvalidInputError(f"{output.name}: would overwrite the image. Name another file.")
    if as_dicom and source.is_file():
        raise InvalidInputError("a DICOM SEG needs a folder with a DICOM series as INPUT.")
    if source.is_file() and _is_dicom(source):
        raise InvalidInputError(
            f"{source.name}: is one DICOM file. Give the folder of its series as INPUT."
        )
    place = home_of(home)
    info = version_of(place, model, version)
    datasets = _series_in(source) if source.is_dir() else []
    header = SiteKey.read(datasets[0]) if datasets else None
    adapters, aliases = SiteAdapters(place.sites / model), Aliases.read(place.sites)
    chosen = choose_site(adapters, aliases, header, site.strip(), info)
    if datasets:
        image = volume_from_datasets(datasets)
    else:
        image = read_volume(source, modality=modality_of(modality))
    segmenter = Segmenter.from_version(info, device, mirror_axes=axes_of("--mirror", mirror))
    if chosen.adapter is not None:
        segmenter = chosen.adapter.segmenter(segmenter, info)
    with stop_on_interrupt() as interrupted, progress_bar(as_json) as bar:
        mask = segmenter.predict(
            image, progress=lambda done, total: bar("infer", done, total), cancel=interrupted
        )
    values, said = segmenter.config.label_values, chosen.params()
    if as_dicom:
        algorithm = Algorithm(
            name=f"SegUnlearn {model}",
            version=f"{info.version} {info.sha256[:12]}",
            parameters={"site adapter": said["adapter"], "site rule": said["site_rule"]},
        )
        segmentation = write_segmentation(
            mask,
            datasets,
            {v: k for k, v in values.items()},
            author="SegUnlearn",
            algorithm=algorithm,
        )
        write_durably(output, _file_of(segmentation))
    else:
        write_volume(mask, output)
    known = modality_for(image.modality, segmenter.config)
    warnings = [] if mask.assumed is None else [assumed_sentence(mask.assumed)]
    voxel = abs(image.spacing[0] * image.spacing[1] * image.spacing[2]) / 1000
    volumes = {k: float((mask.array == v).sum() * voxel) for k, v in values.items()}
    if as_json:
        print_json(
            {
                "output": str(output), "version": info.version, "sha256": info.sha256, **said,
                "modality": mask.assumed.modality if mask.assumed else known,
                "warnings": warnings, "labels": values, "millilitres": volumes,
                "seconds": dict(mask.seconds),
            }
        )  # fmt: skip
        return
    warn(warnings)
    shown = ", ".join(f"{k} {v:.1f} ml" for k, v in volumes.items())
    by = f", adapter {said['adapter']} ({said['site_rule']})" if chosen.adapter else ""
    console.print(
        f"{output.name}: {shown} ({info.version}{by}, {sum(mask.seconds.values()):.1f} s)"
    )


def _is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do (PS3.10); their names may have no suffix."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _series_in(folder: Path) -> list[Dataset]:
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import UID

    from segunlearn.dicom.reading import read_dicom
    from segunlearn.dicom.segmentation import is_segmentation

    series: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = read_dicom(path, header_only=True)
        except InvalidInputError as error:
            if isinstance(error.__cause__, InvalidDicomError):  # something else beside the images
                continue
            raise
        kind = UID(str(header.file_meta.get("MediaStorageSOPClassUID", "")))
        if kind.name.endswith("Image Storage") and "Rows" not in header:
            raise InvalidInputError(f"{path.name}: an image that is cut off. Export it again.")
        if "Rows" in header and not is_segmentation(header):  # else a DICOMDIR, a report, a SEG
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(path)
    if len(series) != 1:
        raise InvalidInputError(
            f"{folder}: holds {len(series)} DICOM series of images. Give the folder of one series."
        )
    return [read_dicom(path) for path in next(iter(series.values()))]


def _file_of(dataset: Dataset) -> bytes:
    import io

    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
