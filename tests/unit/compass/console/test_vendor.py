"""What the console serves of others is what packaging/web/parts.toml names, and gets into the wheel and the image."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ckp.compass.web.assets import FOLDER, Assets
from ckp.compass.web.console import TEMPLATES
from ckp.kits.files import sha256_bytes, sha256_file
from tests.support.checkout import REPO

VENDOR = FOLDER / "vendor"
PARTS = REPO / "packaging" / "web" / "parts.toml"


def test_each_file_is_the_one_that_was_made_from_the_parts() -> None:
    made = json.loads((VENDOR / "vendor.json").read_text())
    assert made["parts"] == sha256_bytes(PARTS.read_bytes()), "run packaging/web/vendor.py"
    there = {path.relative_to(VENDOR).as_posix(): sha256_file(path) for path in VENDOR.rglob("*") if path.is_file() and path.name != "vendor.json"}
    assert there == made["files"]


def test_packages_are_pinned_by_version_and_sha512() -> None:
    for name, part in tomllib.loads(PARTS.read_text()).items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", part["version"]) and re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", part["integrity"]), name
        assert part["licence"]


@pytest.mark.long
def test_the_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, REPO / "packaging" / "web" / "vendor.py", tmp_path],
        check=True,
        env={"PYTHONPATH": str(REPO / "src"), "PATH": "/usr/bin:/bin"},
        timeout=600,
    )
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (VENDOR / path.relative_to(tmp_path)).read_bytes(), path.name


def test_stylesheets_name_no_file_that_is_not_there_and_no_other_host() -> None:
    for sheet in (VENDOR / "patternfly.css", FOLDER / "console.css"):
        text = sheet.read_text()
        assert not re.search(r"https?:|@import", text)
        for name in re.findall(r'url\("?([^")]+)', text):
            assert (sheet.parent / name).is_file(), name
    assert "@media (prefers-color-scheme: dark)" in (VENDOR / "patternfly.css").read_text()


def test_pages_name_only_files_and_icons_that_are_there() -> None:
    assets = Assets()
    icons = set(re.findall(r'id="([a-z]+)"', (FOLDER / "icons.svg").read_text()))
    for template in TEMPLATES.rglob("*.html"):
        text = template.read_text()
        for name in re.findall(r"asset\('([^']+)'\)", text):
            assert assets.url(name)
        assert set(re.findall(r'[^_]icon\("([a-z]+)"', text)) <= icons, template.name


def test_every_class_of_patternfly_on_a_page_is_in_the_stylesheet() -> None:
    sheet = (VENDOR / "patternfly.css").read_text()
    for template in TEMPLATES.rglob("*.html"):
        for name in re.findall(r"pf-v6-[a-z_-]+[a-z]", template.read_text()):
            assert f".{name}" in sheet, (template.name, name)


def test_the_wheel_takes_templates_and_files_along() -> None:
    data = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["ckp.compass.web"]
    root = REPO / "src" / "ckp" / "compass" / "web"
    taken = {path for pattern in data for path in root.glob(pattern) if path.is_file()}
    assert taken == {path for folder in (TEMPLATES, FOLDER) for path in folder.rglob("*") if path.is_file()}
