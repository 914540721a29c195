"""The images that a release's conformance suite starts: made here, from locked sources and Debian's packages, and pushed to the site's registry.

What is in them is data: `packaging/conformance/images`. They have upstream's names and tags, not upstream's bytes; upstream's own are in no registry
that CKP reaches, and a certification run takes those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckp.catalog.load import Catalog
from ckp.catalog.models import Release, Suite
from ckp.clients.oci.registry import Registry
from ckp.clients.signing.cosign import TAG, sign_image
from ckp.clients.signing.openpgp import SigningKey
from ckp.conformance import busybox
from ckp.distribution.builder.component import Built
from ckp.distribution.bundles import PREFIX as RELEASES
from ckp.distribution.images.layers import store
from ckp.distribution.images.make import Image, ImageBuilder
from ckp.distribution.registries.tags import check_tags
from ckp.kits import paths

PREFIX = f"{RELEASES}/conformance"
"""Repositories of the suite's images, in the registry of a site."""
NOTHING = f"{RELEASES}/conformance-absent"
"""A path of the same registry where there is nothing: what tests try to pull in vain is looked for there, and not at a name of the outside."""
REGISTRIES = (
    *("promoterE2eRegistry", "buildImageRegistry", "gcEtcdRegistry", "gcRegistry", "sigStorageRegistry", "dockerLibraryRegistry"),
    "cloudProviderGcpRegistry",
)
"""Keys of RegistryList in test/utils/image/manifest.go (v1.33 to v1.35) from which images are pulled."""
ABSENT = {"invalidRegistry": "invalid", "privateRegistry": "private", "gcAuthenticatedRegistry": "authenticated"}
"""Those from which a pull must fail; the last one is in v1.33 and v1.34 only, and other versions skip it."""


def make_images(suite: Suite, release: Release, built: Mapping[str, Built], say: Callable[[str], None], catalog: Catalog | None = None) -> list[Image]:
    """The suite's images, made if they are not in the cache (the first time: a Debian file system of two minutes, and busybox' compile).

    Args:
        built: the components of `ckp.conformance.programs.build_programs`.
        say: takes lines of progress.

    Raises:
        InvalidInput: a recipe is wrong, or an image of the suite has none.
        NotFound: Debian's mirror has not what is needed.
    """
    source = (catalog or Catalog()).debian_source("busybox")
    made = {"busybox-applets": lambda: (busybox.build(source),), "busybox-program": lambda: (busybox.build(source) / "busybox",)}
    folder = paths.data("packaging", "conformance", "images")
    return ImageBuilder(release, built, say, folder=folder, suite=suite.images, made=made).all()


def push_images(images: Sequence[Image], registry: Registry, say: Callable[[str], None], key: SigningKey, identity: str = "") -> dict[str, str]:
    """Push and sign images; what is there is not sent again. Tags that name other content name this one afterwards, and `say` gets each.

    Args:
        identity: `host:port` that hosts pull from, if that is not the client's own address; it is signed.

    Returns:
        `name:tag` -> the manifest's digest.
    """
    manifests = {(image.repository, image.tag): image.manifest() for image in images}
    wanted = [(f"{PREFIX}/{name}", tag, manifest.digest) for (name, tag), manifest in manifests.items()]
    check_tags(registry, wanted, say, replace=True)
    pem = key.image_key.read_bytes()
    for (name, tag), manifest in manifests.items():
        repository = f"{PREFIX}/{name}"
        registry.push(store(), manifest, repository, tag)
        sign_image(registry, repository, manifest.digest, pem, {TAG: tag}, identity=f"{identity or registry.address}/{repository}")
    say(f"{len(manifests)} images of the conformance suite at {identity or registry.address}/{PREFIX}, signed")
    return {f"{name}:{tag}": manifest.digest for (name, tag), manifest in manifests.items()}


def repositories(address: str) -> dict[str, str]:
    """What the suite reads by KUBE_TEST_REPO_LIST, a file in YAML: where it takes the images of each registry from.

    Args:
        address: `host:port` of the registry, as the cluster's hosts know it.
    """
    return {**dict.fromkeys(REGISTRIES, f"{address}/{PREFIX}"), **{name: f"{address}/{NOTHING}/{path}" for name, path in ABSENT.items()}}
