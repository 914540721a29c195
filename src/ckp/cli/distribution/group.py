"""`ckp dist`: the group of the commands that make, prove and carry the distribution."""

from __future__ import annotations

import click

from ckp.cli.lazy import Lazy, LazyGroup

COMMANDS = {
    "build": Lazy("ckp.cli.distribution.dist:dist_build", "Build release NAME: programs, signed packages, images, bundles."),
    "compare": Lazy(
        "ckp.cli.distribution.evidence:compare",
        "Compare each program of release NAME with upstream's: modules by hash, toolchain, flags, version stamps.",
    ),
    "export": Lazy(
        "ckp.cli.distribution.dist:dist_export", "Write release NAME into FILE: one signed file with everything that a site without a network needs."
    ),
    "import": Lazy("ckp.cli.distribution.dist:dist_import", "Verify FILE and unpack it into the cache, for `ckp up --from` and `ckp dist publish --from`."),
    "mirror": Lazy(
        "ckp.cli.distribution.registry:mirror",
        "Copy releases from the registry SOURCE to TARGET (host:port each), with signatures, SBOMs and provenance; digests do not change.",
    ),
    "package": Lazy("ckp.cli.distribution.package:dist_package", "Make the packages of `ckp` itself: a wheel, and a signed deb and rpm."),
    "provenance": Lazy(
        "ckp.cli.distribution.evidence:provenance",
        "Show the provenance of an artifact: its sources, toolchain and flags, as an in-toto statement with SLSA's predicate.",
    ),
    "prune": Lazy(
        "ckp.cli.distribution.registry:prune",
        "Remove a release from REGISTRY (host:port): its tags, images, signatures, SBOMs and provenance, except those that other releases or tags name.",
    ),
    "publish": Lazy("ckp.cli.distribution.dist:dist_publish", "Publish release NAME to a registry, to package repositories, or both."),
    "repository": Lazy(
        "ckp.cli.distribution.repository:repository",
        "Maintain the apt and dnf repositories in FOLDER, which `ckp dist publish --repositories FOLDER` fills.",
    ),
    "reproduce": Lazy("ckp.cli.distribution.evidence:reproduce", "Rebuild release NAME in another folder, and compare it bit by bit."),
    "sbom": Lazy("ckp.cli.distribution.evidence:sbom", "Show the software bill of materials (SBOM) of an artifact, as CycloneDX."),
    "sign": Lazy("ckp.cli.distribution.registry:sign", "Sign IMAGE (host:port/repository:tag) in cosign's format."),
    "verify": Lazy("ckp.cli.distribution.verify:verify", "Verify packages (.deb, .rpm), folders and images."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def dist() -> None:
    """Build, sign, publish, carry and verify the distribution."""
