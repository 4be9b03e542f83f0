"""Write the extension as a repository of its own, with its addresses, for the Extensions Index.

``python publish.py https://github.com/OWNER/SlicerSegUnlearn FOLDER`` writes ``FOLDER`` and, beside
it, ``SegUnlearn.json``, the index's entry. The addresses stand nowhere else: the sources name no
place where they are not published.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

EXTENSION = Path(__file__).parent / "SegUnlearn"
PICTURES = ("Screenshots/study.png", "Screenshots/forget-set.png")
_SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/"
    "slicer-extension-catalog-entry-schema-v1.0.1.json#"
)
#: The index reads GitHub's topics, and wants the name of a repository to begin so.
_ADDRESS = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/(Slicer[A-Za-z0-9._-]*)")
_AFTER = "set(EXTENSION_DESCRIPTION "


def publish(address: str, folder: Path) -> Path:
    """Write the repository and the entry of the index.

    Parameters
    ----------
    address
        Of the repository on GitHub, without a trailing ``.git``.
    folder
        New, for the repository.

    Returns
    -------
    Path
        The entry.

    Raises
    ------
    ValueError
        The index would not take this address.
    FileExistsError
        The folder is there.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or address.endswith(".git"):
        raise ValueError(
            f"{address!r} is no address for the Extensions Index. It has to look like "
            "https://github.com/you/SlicerSegUnlearn: on GitHub, and with a name that begins with "
            "Slicer."
        )
    raw = f"https://raw.githubusercontent.com/{found[1]}/{found[2]}/main"
    shutil.copytree(EXTENSION, folder, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = folder / "CMakeLists.txt"
    lines = recipe.read_text(encoding="utf-8").splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith(_AFTER)) + 1
    lines[place:place] = [
        f'set(EXTENSION_HOMEPAGE "{address}")',
        f'set(EXTENSION_ICONURL "{raw}/Resources/Icons/SegUnlearn.png")',
        f'set(EXTENSION_SCREENSHOTURLS "{" ".join(f"{raw}/{p}" for p in PICTURES)}")',
    ]
    recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
    entry = {
        "$schema": _SCHEMA, "build_dependencies": [], "build_subdirectory": ".",
        "category": "Active Learning", "scm_revision": "main", "scm_url": f"{address}.git",
        "tier": 1,
    }  # fmt: skip
    path = folder.parent / "SegUnlearn.json"
    path.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    publish(sys.argv[1], Path(sys.argv[2]))
