"""The compatibility matrix for people (Markdown, a table) and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckp.catalog.load import SUPPORTED, Catalog
from ckp.catalog.models import Release
from ckp.kits.files import atomic_write

NOT_SAID = "not in it"
COMMAND = "ckp release matrix --write"


def page_path(catalog: Catalog) -> Path:
    """Where the rendered page lies, beside the catalog."""
    return catalog.root.parent / "docs" / "reference" / "compatibility.md"


def matrix_data(catalog: Catalog) -> dict[str, Any]:
    """Releases, rules and operating systems, as `ckp release matrix --format json` prints them."""
    matrix = catalog.matrix()
    releases = [catalog.release(name) for name in catalog.names()]
    latest = max((number for number, release in enumerate(releases) if release.status == SUPPORTED), default=-1)
    return {
        "architecture": matrix.architecture,
        "releases": [
            {
                "name": release.name,
                "packages": release.package_version,
                "status": release.status + (" (Latest)" if number == latest else ""),
                "components": {row.name: _shown(release, row.name, row.image_tag) for row in matrix.components},
                "cri": release.cri,
                "cni": {name: {"version": version, "built": name in release.built_cni} for name, version in sorted(release.cni.items())},
                "stand_ins": {name: f"{item.component} {item.version}" for name, item in sorted(release.stand_ins.items())},
                "cncf_white_paper": matrix.certified.get(release.name, NOT_SAID),
            }
            for number, release in enumerate(releases)
        ],
        "rules": [
            {"name": row.name, "title": row.title, "allowed": _rule(row.allowed, row.image_tag), "white_paper": row.section} for row in matrix.components
        ],
        "systems": [{"title": item.title, "package": item.package, "bundle": item.target.repository, "white_paper": item.section} for item in matrix.systems],
    }


def _shown(release: Release, component: str, image_tag: str) -> str:
    """What a release has of a component; the image's tag where the white paper names that."""
    return release.image_tags[component] if image_tag else {**release.pins, **release.cni}[component]


def _rule(allowed: str, image_tag: str) -> str:
    return f"{allowed} (image {image_tag})" if image_tag and allowed != image_tag else allowed


def _release_rows(data: dict[str, Any]) -> list[list[str]]:
    head = ["Release", "Status", *(rule["title"] for rule in data["rules"]), "Cilium", "CRI", "CNCF (white paper)"]
    rows = [head]
    for item in data["releases"]:
        cilium = item["cni"]["cilium"]["version"]
        rows.append(
            [item["name"], item["status"], *(item["components"][rule["name"]] for rule in data["rules"]), cilium, item["cri"], item["cncf_white_paper"]]
        )
    return rows


def markdown(catalog: Catalog) -> str:
    """The page docs/reference/compatibility.md."""
    data = matrix_data(catalog)
    networks = [
        [item["name"], name, network["version"], "built and offered" if network["built"] else "locked, not built yet"]
        for item in data["releases"]
        for name, network in item["cni"].items()
    ]
    stand_ins = [[item["name"], name, text] for item in data["releases"] for name, text in item["stand_ins"].items()]
    parts = [
        "# Compatibility matrix",
        f"Rendered from `catalog/` by `{COMMAND}`; not edited by hand. A release file that leaves these rules is refused when it is read.",
        "## Releases",
        *_blocks(_release_rows(data)),
        "The column CNCF repeats the white paper (§11.1), which speaks of its own releases. What CKP builds has been submitted to no certification.",
        "A Candidate is built and locked like any other release, and has not passed all tests yet.",
        "## What a release may have",
        *_blocks([["Component", "Allowed", "White paper"], *([rule["title"], rule["allowed"], rule["white_paper"]] for rule in data["rules"])]),
        "## Operating systems",
        f"Architecture: {data['architecture']}. Every release has a bundle for each of these.",
        *_blocks(
            [
                ["Operating system", "Packages", "Bundle", "White paper"],
                *([item["title"], item["package"], f"`{item['bundle']}`", item["white_paper"]] for item in data["systems"]),
            ]
        ),
        "## Networks",
        *_blocks([["Release", "Network", "Version", "State"], *networks]),
        "## Stand-ins",
        "In the profile `lab`, these take the place of a pin that the module proxy at hand may not serve. The profile `release` never takes one.",
        *_blocks([["Release", "Pin", "Stand-in"], *stand_ins]),
    ]
    return "\n\n".join(parts) + "\n"


def _blocks(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return ["\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])]


def table(catalog: Catalog) -> str:
    """The releases side by side, for a terminal: a row for each component, a column for each release."""
    turned = list(zip(*_release_rows(matrix_data(catalog)), strict=True))
    widths = [max(len(row[column]) for row in turned) for column in range(len(turned[0]))]
    return "\n".join("   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in turned)


def page_findings(catalog: Catalog) -> list[str]:
    """Whether the page exists and is up to date; no findings for a catalog without docs beside it."""
    path = page_path(catalog)
    if not path.parent.is_dir():
        return []
    if path.exists() and path.read_text() == markdown(catalog):
        return []
    return [f"{path}:1: is not up to date with the catalog; `{COMMAND}` renders it again"]


def write_page(catalog: Catalog) -> Path | None:
    """Render the page into its place; None where there are no docs beside the catalog."""
    path = page_path(catalog)
    if not path.parent.is_dir():
        return None
    atomic_write(path, markdown(catalog))
    return path
