"""A site whose only version knows everybody by the ledger, and stand-ins that take a moment."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site, site_in
from segunlearn.app import unlearn_run
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.unlearn_run import UnlearnRun
from unlearn_storm import passing_audit, quick_make

PERSON = r"^(Name-\d+)_"


def known_site(folder: Path, *, forget: int = 2, retain: int = 4, unseen: int = 24) -> Site:
    """Random weights as v0001, that the ledger says were trained on all but the unseen people."""
    site = site_in(folder, forget=forget, retain=retain, unseen=unseen)
    site.publish(1, [*site.forget, *site.retain])
    return site


def copy_of(site: Site, folder: Path) -> Site:
    """The same site with a home of its own."""
    shutil.copytree(site.home.root, folder / "home")
    return replace(site, home=replace(site.home, root=folder / "home"))


def app_of(site: Site, folder: Path) -> SegUnlearnApp:
    """The server's app on the site's files."""
    data = site.cases[0].image.parents[1]
    conf = {"home": str(site.home.root), "model": MODEL, "person_regex": PERSON, "device": "cpu"}
    return SegUnlearnApp(str(folder), str(data), conf)


def everything(site: Site) -> tuple[Any, ...]:
    """Requests, versions and journals: what a refused request must leave as it was."""
    files = [p for p in site.home.unlearning.rglob("*") if p.is_file()]
    return site.records.forget_set.list(limit=1000), site.registry.versions(), files


def let_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unlearning of a moment, and an audit that passes."""
    monkeypatch.setattr(unlearn_run, "make", quick_make)
    monkeypatch.setattr(UnlearnRun, "_audited", passing_audit)
