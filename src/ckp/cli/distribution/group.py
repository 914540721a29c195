"""`ckp dist`: the group of the commands that make, prove and carry the distribution."""

from __future__ import annotations

import click

from ckp.cli.lazy import Lazy, LazyGroup

COMMANDS = {
    "build": Lazy("ckp.cli.distribution.dist:dist_build", "Build a release: programs, signed packages, images, bundles."),
    "compare": Lazy(
        "ckp.cli.distribution.evidence:compare",
        "Show in what each program is the same as upstream's, and in what not: modules by hash, toolchain, flags, version stamps.",
    ),
    "export": Lazy("ckp.cli.distribution.dist:dist_export", "Write release NAME into FILE, one signed file with all that a site without a network needs."),
    "import": Lazy("ckp.cli.distribution.dist:dist_import", "Verify FILE and unpack it into the cache, for `ckp up --from` and `ckp dist publish --from`."),
    "mirror": Lazy(
        "ckp.cli.distribution.registry:mirror",
        "Copy releases from the registry SOURCE to TARGET (host:port each), with signatures, SBOMs and provenance; digests stay what they are.",
    ),
    "provenance": Lazy(
        "ckp.cli.distribution.evidence:provenance",
        "Show from which sources, with which toolchain and flags something was made, as in-toto with SLSA's predicate.",
    ),
    "prune": Lazy(
        "ckp.cli.distribution.registry:prune",
        "Remove a release from REGISTRY (host:port): its tags, images, signatures, SBOMs and provenance, save what other releases or tags name too.",
    ),
    "publish": Lazy("ckp.cli.distribution.dist:dist_publish", "Bring a release into a registry, into package repositories, or both."),
    "repository": Lazy(
        "ckp.cli.distribution.repository:repository",
        "Maintain the apt and dnf repositories in FOLDER, which `ckp dist publish --repositories FOLDER` fills.",
    ),
    "reproduce": Lazy("ckp.cli.distribution.evidence:reproduce", "Make a release again in another place, and compare it bit by bit."),
    "sbom": Lazy("ckp.cli.distribution.evidence:sbom", "Show what something is made of, as CycloneDX."),
    "sign": Lazy("ckp.cli.distribution.registry:sign", "Sign IMAGE (host:port/repository:tag) in cosign's format."),
    "verify": Lazy("ckp.cli.distribution.verify:verify", "Verify packages (.deb, .rpm), folders and images."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def dist() -> None:
    """Build, sign, publish, carry and verify the distribution."""
