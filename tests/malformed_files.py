"""Real files with mutated bytes and elements, read as the server reads them, in worker processes.

Used by a test (few) and by ``tests/benchmarks/fuzz_files.py`` (20,000). A worker that dies, takes
longer than :data:`SECONDS` for one input or needs more than :data:`MEGABYTES` is a fault; so is
every exception that is none of ours.
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import random
import resource
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from app_sources import TINY
from segunlearn.app.datastores.labels import on_grid_of, renumber
from segunlearn.app.infer import header_of, read_image
from segunlearn.dicom.archive import open_archive
from segunlearn.dicom.deflated import refuse_deflated
from segunlearn.errors import SegUnlearnError
from segunlearn.transforms import preprocess
from segunlearn.volumes import Volume, read_volume, write_volume

#: Longest time for one input, and most memory beside what a server has anyway.
SECONDS = 10
MEGABYTES = 2048

#: Bytes that often mean something: zero, signs, largest values, NaN and infinity.
NASTY = (
    b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
    b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f",
)  # fmt: skip

#: Values for elements of any kind.
VALUES: tuple[Any, ...] = (
    "", "0", "-1", "1e308", "1e-308", "nan", "inf", "99999999999999999999", "x" * 5000, "\\",
    "1\\2", "0\\0\\0", "1\\0\\0\\0\\1\\0", "nan\\nan\\nan", "1.2.3", "A\\B\\C",
    "\u00e4\u4e2d", "-32768", "65535", "1", "16", "4294967295",
)  # fmt: skip


@dataclass
class Sample:
    """Files that belong together, and how the server reads them."""

    kind: str
    files: list[bytes]
    suffix: str = ".dcm"


@dataclass
class Outcome:
    """What a number of inputs came to."""

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    largest_megabytes: float = 0.0


def nifti_samples(image: Volume, label: Volume) -> list[Sample]:
    """One volume in every encoding that may be uploaded, and its label."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".nii", ".nii.gz", ".nrrd"):
            for kind, volume in (("image", image), ("label", label)):
                path = Path(folder) / f"{kind}{suffix}"
                write_volume(volume, path)
                samples.append(Sample(kind, [path.read_bytes()], suffix))
    return samples


def dicom_samples(*series: list[Path]) -> list[Sample]:
    """Each series as an upload and as a folder of the studies."""
    files = [[path.read_bytes() for path in paths] for paths in series]
    return [Sample(kind, content) for content in files for kind in ("upload", "archive")]


def mutated(sample: Sample, rng: random.Random) -> list[bytes]:
    """One or a few files of a sample with damage."""
    files = list(sample.files)
    for number in rng.sample(range(len(files)), min(len(files), rng.choice((1, 1, 1, 2, 9)))):
        content = files[number]
        if sample.suffix == ".dcm":
            by_element = rng.random() < 0.5
            content = (_element if by_element else _bytes)(content, rng)
        elif sample.suffix == ".nii.gz" and rng.random() < 0.8:  # else the packed stream itself
            content = gzip.compress(_nifti(gzip.decompress(content), rng), 1)
        elif sample.suffix == ".nii":
            content = _nifti(content, rng)
        else:
            content = _bytes(content, rng, 400)
        files[number] = content
    return files


def _bytes(content: bytes, rng: random.Random, head: int = 3000) -> bytes:
    """Change, cut out, add or repeat bytes, mostly in the header."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        place = rng.randrange(min(len(data), head) if rng.random() < 0.8 else len(data))
        way = rng.randrange(6)
        if way == 0:
            data[place] = rng.randrange(256)
        elif way == 1:
            nasty = rng.choice(NASTY)
            data[place : place + len(nasty)] = nasty
        elif way == 2:
            del data[place : place + rng.choice((1, 2, 4, 9, 100, 5000))]
        elif way == 3:
            data[place:place] = rng.randbytes(rng.choice((1, 2, 4, 100)))
        elif way == 4:
            data[place:place] = data[place : place + 200] * rng.choice((1, 2, 50))
        else:
            del data[place:]
    return bytes(data)


#: Offset and format of the fields of a NIfTI-1 header that say how large, of what kind, and where.
_FIELDS = (
    *((40 + 2 * i, "<h") for i in range(8)), (70, "<h"), (72, "<h"),
    *((76 + 4 * i, "<f") for i in range(8)), (108, "<f"), (112, "<f"), (116, "<f"), (252, "<h"),
    (254, "<h"), *((256 + 4 * i, "<f") for i in range(18)), (0, "<i"), (123, "<B"), (344, "<I"),
)  # fmt: skip
_WHOLE = (0, 1, 2, 3, 4, 7, 8, 16, 64, 255, 512, 768, 1024, 1792, 2048, 4096, 32767, -1, -32768)
_REAL = (0.0, 1.0, -1.0, 1e-30, 1e30, 1e38, 352.0, 348.0, 0.01, 1000.0, float("nan"), float("inf"))


def _nifti(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return _bytes(content, rng, 352)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place, form = rng.choice(_FIELDS)
        value: Any = rng.choice(_REAL) if form == "<f" else rng.choice(_WHOLE)
        if form in ("<B", "<I"):
            value = abs(int(value)) % 256
        struct.pack_into(form, data, place, value)
    return bytes(data)


def _element(content: bytes, rng: random.Random) -> bytes:
    """Give an element another value, another kind, or none."""
    try:
        ds = pydicom.dcmread(io.BytesIO(content))
    except pydicom.errors.InvalidDicomError:
        return _bytes(content, rng)
    holder: Any = ds
    for _ in range(3):  # somewhere below, where there are sequences
        inner = [e for e in holder if e.VR == "SQ" and e.value]
        if inner and rng.random() < 0.5:
            holder = rng.choice(list(rng.choice(inner).value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        elements = [e for e in holder if e.VR != "SQ"]
        if not elements:
            break
        element = rng.choice(elements)
        way = rng.randrange(4)
        try:
            if way == 0:
                del holder[element.tag]
            elif way == 1 and element.VR in ("OB", "OW", "UN"):
                holder[element.tag].value = bytes(element.value)[: rng.choice((0, 1, 99))]
            elif element.VR in ("US", "SS", "UL", "SL"):
                limit = 16 if element.VR in ("US", "SS") else 32
                value = rng.choice((0, 1, 2, 7, 8, 16, 255, 512, 4096, 65535, 2**31))
                holder[element.tag].value = value % (2 ** (limit - (element.VR[0] == "S")))
            elif element.VR in ("FD", "FL"):
                holder[element.tag].value = rng.choice(_REAL)
            else:
                vr = "UT" if rng.random() < 0.2 else element.VR
                holder[element.tag] = pydicom.DataElement(element.tag, vr, rng.choice(VALUES))
        except (ValueError, TypeError, OverflowError, AttributeError):
            continue
    out = io.BytesIO()
    try:
        pydicom.dcmwrite(out, ds, enforce_file_format=False)
    except Exception:  # noqa: BLE001 - what pydicom cannot write, bytes can still be
        return _bytes(content, rng)
    return out.getvalue()


def read(sample: Sample, files: list[bytes], folder: Path) -> str:
    """Read files as the server does; returns what they were taken for."""
    if sample.suffix != ".dcm":
        path = folder / f"upload{sample.suffix}"
        path.write_bytes(files[0])
        if sample.kind == "label":
            label = read_volume(path, label=True)
            renumber(on_grid_of(label, label), None, {"a": 1, "b": 2})
            return "label"
        preprocess(read_image(path), TINY)
        return "image"
    place = folder / "series"
    place.mkdir()
    for number, content in enumerate(files):
        if sample.kind == "upload":
            refuse_deflated(io.BytesIO(content))
        (place / f"{number:05d}.dcm").write_bytes(content)
    if sample.kind == "upload":
        header_of(place)
        preprocess(read_image(place), TINY)
        return "upload"
    return _read_archive(place, folder / "index")


def _read_archive(place: Path, index: Path) -> str:
    archive, found = open_archive(place, index_dir=index), "archive: nothing"
    for series in archive.list_series(modalities=()):
        uid = series.series_instance_uid
        uses: tuple[Callable[[], Any], ...] = (
            lambda uid=uid: archive.headers(uid),
            lambda uid=uid: archive.segmentations_of(uid),
            lambda uid=uid: archive.load_label(uid, {1: "liver"}),
            lambda uid=uid: preprocess(archive.load_volume(uid), TINY),
        )
        for number, use in enumerate(uses):
            try:
                use()
            except SegUnlearnError:
                continue
            if number == 3:
                found = "archive: volume"
    return found


def fuzz(samples: list[Sample], seeds: range, megabytes: int = MEGABYTES) -> Outcome:
    """Read one mutated input for each seed in a process of its own; begins anew after a death."""
    total = Outcome()
    context = multiprocessing.get_context("fork")
    at, position = context.Value("q", seeds.start), seeds.start
    while position < seeds.stop:
        ours, theirs = context.Pipe(duplex=False)
        arguments = (samples, range(position, seeds.stop), megabytes, at, theirs)
        worker = context.Process(target=_work, args=arguments)
        worker.start()
        theirs.close()
        try:
            while True:
                add(total, ours.recv())
        except EOFError:
            pass
        worker.join(30)
        assert worker.exitcode is not None
        if worker.exitcode == 0:
            break
        position = int(at.value) + 1
        how = "a hang" if worker.exitcode == -signal.SIGALRM else f"death by {worker.exitcode}"
        total.faults.append(f"seed {position - 1}: {how}")
    return total


def add(total: Outcome, part: Outcome) -> None:
    """Add a part to the whole."""
    total.read += part.read
    total.refused += part.refused
    total.faults += part.faults
    total.slowest = max(total.slowest, part.slowest)
    total.largest_megabytes = max(total.largest_megabytes, part.largest_megabytes)


def _work(samples: list[Sample], seeds: range, megabytes: int, at: Any, reports: Any) -> None:
    warnings.simplefilter("ignore")  # damaged headers are what the files are for
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C complain there
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends also what hangs in C
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = now + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for seed in seeds:
        at.value = seed
        signal.alarm(SECONDS)
        part, began = Outcome(), time.monotonic()
        rng = random.Random(seed)
        sample = samples[seed % len(samples)]
        with tempfile.TemporaryDirectory(prefix="malformed-") as folder:
            name = f"{sample.kind}{sample.suffix}"
            try:
                part.read[read(sample, mutated(sample, rng), Path(folder))] += 1
            except SegUnlearnError as error:
                part.refused[f"{name}: {type(error).__name__}"] += 1
                if error.http_status >= 500:
                    part.faults.append(f"seed {seed}: {name}: {error}")
            except BaseException:  # noqa: BLE001 - whatever it is, it is a fault
                told = traceback.format_exc().splitlines()
                part.faults.append(f"seed {seed}: {name}: {told[-1]:.300} {told[-3].strip()}")
        signal.alarm(0)
        part.slowest = time.monotonic() - began
        part.largest_megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        reports.send(part)
    reports.close()
    os._exit(0)


def hippocampus(data: Path) -> list[Sample]:
    """Samples of a real crop and its label."""
    name = "hippocampus_001.nii.gz"
    found = sorted((data / "hippocampus" / "images").glob("*.nii.gz"))
    image = next((p for p in found if p.name == name), found[0])
    label = image.parents[1] / "labels" / image.name
    values: Any = np.asanyarray(nib.load(image).dataobj)  # type: ignore[attr-defined]
    volume = read_volume(image, modality="MR")
    small = np.int16 if np.issubdtype(values.dtype, np.integer) else np.float32
    return nifti_samples(
        Volume(volume.array.astype(small), volume.affine, "MR"), read_volume(label, label=True)
    )


def real_dicom(data: Path) -> list[Sample]:
    """Samples of real series: CT with its SEG, MR of two scanners, enhanced, awkward headers."""
    root = data / "dicom"
    ct = root / "ct-ge-3slice-seg" / "segmentations"
    hippo = sorted((root / "mr-hippocrop-1").glob("*.dcm"))
    siemens = sorted((root / "mr-siemens-t1post").glob("*.dcm"))[:3]
    return dicom_samples(
        hippo,
        siemens,
        sorted((ct / "ct-3slice").glob("*.dcm")),
        [*sorted((ct / "23x38x3" / "image").glob("*.dcm")), ct / "23x38x3" / "seg" / "label.seg"],
        [ct / "23x38x3" / "multiframe" / "mf.dcm"],
        [root / "highdicom-objects" / "test_files" / "seg_image_ct_binary_overlap.dcm",
         root / "highdicom-objects" / "test_files" / "ct_image.dcm"],
    )  # fmt: skip
