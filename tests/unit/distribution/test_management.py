"""The management layer's manifests are rendered for the release that the management cluster runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.catalog.load import Catalog
from ckp.distribution.builder.component import Built
from ckp.distribution.management import Management

HELM = """#!/bin/sh
printf 'kind: ConfigMap\\ndata: {arguments: "%s"}\\n' "$*"
"""
"""In helm's place: prints what it was called with as a manifest."""


def management(release: str, folder: Path) -> Management:
    """The parts that cert-manager's manifests are rendered from, with a chart of one file."""
    catalog = Catalog()
    found = catalog.release(release)
    built = {role: Built(catalog.choose(found, role, "lab"), folder / role, key="", fresh=False) for role in ("kubernetes", "cert-manager", "helm")}
    helm, cert_manager = built["helm"].binary("helm"), built["cert-manager"]
    helm.parent.mkdir(parents=True)
    helm.write_text(HELM)
    helm.chmod(0o755)
    chart = cert_manager.file("charts/cert-manager")
    chart.mkdir(parents=True)
    (chart / "Chart.template.yaml").write_text("apiVersion: v1\nname: cert-manager\nversion: {{version}}\n")
    cert_manager.file("crds").mkdir()
    images = {f"cert-manager-{name}": "v1@sha256:" + "ab" * 32 for name in ("controller", "webhook", "cainjector")}
    return Management(built, "registry:5000/ckp", images)


@pytest.mark.parametrize("release", Catalog().names())
def test_charts_are_rendered_for_the_releases_own_kubernetes(release: str, tmp_path: Path) -> None:
    rendered = management(release, tmp_path).cert_manager()[-1]
    assert f"--kube-version={release}" in rendered["data"]["arguments"].split()
