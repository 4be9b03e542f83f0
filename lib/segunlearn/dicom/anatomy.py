"""Coded names of segments: what a label is called in DICOM (PS3.16 CID 7150, 7151, 7166)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from segunlearn.errors import LabelError

#: Designator of our own codes, for labels that have no entry in the table (PS3.16 section 8).
PRIVATE_SCHEME = "99SEGUNLEARN"

_STRUCTURE: Code = codes.SCT.AnatomicalStructure
_TISSUE: Code = codes.SCT.Tissue
_ABNORMAL: Code = codes.SCT.MorphologicallyAbnormalStructure
_SUBSTANCE: Code = codes.SCT.BodySubstance

_LATERALITY = {"left": codes.SCT.Left, "right": codes.SCT.Right}

#: Category, then label names (lower case, words apart) with the keyword in pydicom's SNOMED CT.
_TABLE: tuple[tuple[Code, str], ...] = (
    (
        _STRUCTURE,
        "liver=Liver spleen=Spleen kidney=Kidney pancreas=Pancreas gallbladder=Gallbladder "
        "stomach=Stomach duodenum=Duodenum small_intestine=SmallIntestine "
        "small_bowel=SmallIntestine colon=Colon large_intestine=LargeIntestine "
        "rectum=Rectum esophagus=Esophagus oesophagus=Esophagus "
        "adrenal_gland=AdrenalGland bladder=Bladder urinary_bladder=Bladder "
        "prostate=Prostate uterus=Uterus heart=Heart ventricle=Ventricle "
        "left_ventricle=LeftVentricle right_ventricle=RightVentricle left_atrium=LeftAtrium "
        "right_atrium=RightAtrium aorta=Aorta inferior_vena_cava=InferiorVenaCava "
        "portal_vein=PortalVein splenic_vein=SplenicVein pulmonary_artery=PulmonaryArtery "
        "artery=Artery vein=Vein vessel=BloodVessel blood_vessel=BloodVessel lung=Lung "
        "trachea=Trachea thyroid=Thyroid thyroid_gland=Thyroid parotid_gland=ParotidGland "
        "breast=Breast brain=Brain cerebellum=Cerebellum thalamus=Thalamus putamen=Putamen "
        "caudate=CaudateNucleus caudate_nucleus=CaudateNucleus amygdala=Amygdala "
        "hippocampus=Hippocampus spinal_cord=SpinalCord eye=Eye lens=Lens optic_nerve=OpticNerve "
        "retina=Retina spine=Spine vertebra=Vertebra bone=Bone femur=Femur humerus=Humerus "
        "rib=Rib sternum=Sternum scapula=Scapula clavicle=Clavicle skull=Skull mandible=Mandible "
        "pelvis=Pelvis tooth=Tooth meniscus=Meniscus lymph_node=LymphNode body=EntireBody "
        "organ=Organ skin=Skin",
    ),
    (
        _TISSUE,
        "muscle=Muscle skeletal_muscle=SkeletalMuscle fat=AdiposeTissue cartilage=Cartilage "
        "grey_matter=GrayMatter gray_matter=GrayMatter white_matter=WhiteMatter",
    ),
    (
        _ABNORMAL,
        "tumor=Neoplasm tumour=Neoplasm neoplasm=Neoplasm cancer=Neoplasm lesion=Lesion mass=Mass "
        "nodule=Nodule cyst=Cyst edema=Edema oedema=Edema necrosis=Necrosis abscess=Abscess "
        "hemorrhage=Hemorrhage haemorrhage=Hemorrhage effusion=Effusion "
        "pleural_effusion=PleuralEffusion",
    ),
    (_SUBSTANCE, "csf=CerebrospinalFluid cerebrospinal_fluid=CerebrospinalFluid"),
)

_CODES: dict[str, tuple[Code, Code]] = {
    name.replace("_", " "): (category, getattr(codes.SCT, keyword))
    for category, entries in _TABLE
    for name, _, keyword in (entry.partition("=") for entry in entries.split())
}


@dataclass(frozen=True)
class CodedLabel:
    """Name of a segment with its codes.

    Parameters
    ----------
    name
        SegmentLabel (0062,0005), at most 64 characters.
    category, kind
        Segmented property category and type.
    laterality
        Modifier of the type, or None.
    """

    name: str
    category: Code
    kind: Code
    laterality: Code | None = None


def coded_label(name: str) -> CodedLabel:
    """Find the codes of a label name.

    Names are compared without case; ``_`` and ``-`` count as spaces, and ``left``/``right`` at
    either end becomes a laterality. A name that is not in the table gets a code of our own
    (``99SEGUNLEARN``) that is the same wherever the name is used.

    Raises
    ------
    LabelError
        The name is empty, too long for the header, or holds a backslash or control character.

    Examples
    --------
    >>> coded_label("Left kidney").kind.meaning, coded_label("Left kidney").laterality.meaning
    ('Kidney', 'Left')
    >>> coded_label("anterior").kind.scheme_designator
    '99SEGUNLEARN'
    """
    shown = name.strip()
    if not shown or len(shown) > 64 or "\\" in shown or not shown.isprintable():
        raise LabelError(
            f"{name[:70]!r} cannot name a segment: 1 to 64 printable characters without backslash."
        )
    words = re.sub(r"[\s_-]+", " ", shown).casefold().strip()
    if words in _CODES:
        return CodedLabel(shown, *_CODES[words])
    for side, code in _LATERALITY.items():
        for rest in (words.removeprefix(f"{side} "), words.removesuffix(f" {side}")):
            if rest != words and rest in _CODES:
                return CodedLabel(shown, *_CODES[rest], laterality=code)
    value = "L" + hashlib.sha256(words.encode()).hexdigest()[:12].upper()
    return CodedLabel(shown, _STRUCTURE, Code(value, PRIVATE_SCHEME, shown))
