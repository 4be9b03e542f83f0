"""Every awkward file is served or refused with a sentence: never a 500, never a traceback."""

from collections import Counter
from pathlib import Path

import httpx
import pydicom.data
import pytest
from fastapi import FastAPI

from live_server import live_server
from segunlearn.app import dicomweb
from segunlearn.app.dicomweb.common import current_client
from segunlearn.dicom.folder import FolderClient

# What pydicom says of these files is right, and not an error of ours.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RESOURCES = (
    ("/metadata", "application/dicom+json"),
    ("", 'multipart/related; type="application/dicom"'),
    ("/frames/1", "multipart/related; type=application/octet-stream; transfer-syntax=*"),
    ("/frames/1", "*/*"),
    ("/rendered", "image/png"),
)


def ask_for_everything(folder: Path, index_dir: Path) -> Counter[tuple[str, int]]:
    client = FolderClient(folder, index_dir=index_dir)
    app = FastAPI()
    for router in dicomweb.routers():
        app.include_router(router)
    app.dependency_overrides[current_client] = lambda: client
    seen: Counter[tuple[str, int]] = Counter()
    with live_server(app) as url, httpx.Client(base_url=f"{url}/dicomweb", timeout=60) as http:
        for result in http.get("/instances").json():
            study, series, instance = (
                result[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")
            )
            path = f"/studies/{study}/series/{series}/instances/{instance}"
            for resource, accept in RESOURCES:
                answer = http.get(path + resource, headers={"Accept": accept})
                seen[resource, answer.status_code] += 1
                assert answer.status_code in (200, 404, 406, 422), (path, answer.text)
                if answer.status_code != 200:
                    sentence = answer.json()["detail"]
                    assert len(sentence) > 15
                    assert "Traceback" not in sentence
                    assert str(folder) not in sentence
    return seen


@pytest.mark.slow
def test_files_of_pydicom(tmp_path):
    folder = Path(pydicom.data.__file__).parent / "test_files"
    seen = ask_for_everything(folder, tmp_path)
    assert seen["/metadata", 200] > 100
    assert seen["/rendered", 200] > 50
    assert seen["/frames/1", 422] < 10


@pytest.mark.slow
@pytest.mark.data
def test_real_files(data_dir, tmp_path):
    seen = ask_for_everything(data_dir / "dicom", tmp_path)
    assert seen["/metadata", 200] > 150
    assert {status for _, status in seen} <= {200, 404, 406}
