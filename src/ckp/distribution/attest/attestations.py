"""SBOMs and signed provenance in a registry: attached to images and bundles as referrers, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckp.clients.oci.registry import Descriptor, Registry
from ckp.clients.signing import dsse
from ckp.distribution.attest.cyclonedx import MEDIA_TYPE as SBOM_TYPE
from ckp.distribution.attest.cyclonedx import render
from ckp.distribution.attest.provenance import PREDICATE_TYPE, with_sbom
from ckp.kits.errors import InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import sha256_bytes

PROVENANCE_TYPE = dsse.PAYLOAD_TYPE
"""Artifact type of a referrer that holds a DSSE envelope."""


def attach_all(
    registry: Registry, repository: str, manifest: Descriptor, sbom: Mapping[str, Any], statement: Mapping[str, Any], key_pem: Path
) -> list[Descriptor]:
    """Attach an image's or a bundle's SBOM and its signed provenance, which names the SBOM's hash. Doing it again changes nothing.

    Args:
        key_pem: the file with the private key for images.

    Raises:
        InvalidInput: the statement is not about this manifest.
    """
    digest = manifest.digest.removeprefix("sha256:")
    if all(subject["digest"].get("sha256") != digest for subject in statement["subject"]):
        raise InvalidInput(f"this provenance is not about {repository}@{manifest.digest}: no subject has that digest")
    document = render(sbom)
    signed = dsse.envelope(with_sbom(statement, document, SBOM_TYPE), key_pem.read_bytes())
    predicate = {"in-toto.io/predicate-type": PREDICATE_TYPE}
    return [
        registry.attach(repository, manifest, SBOM_TYPE, document, SBOM_TYPE),
        registry.attach(repository, manifest, PROVENANCE_TYPE, signed, dsse.MEDIA_TYPE, predicate),
    ]


def attached(registry: Registry, repository: str, digest: str, artifact_type: str) -> list[bytes]:
    """The documents of one type that refer to a manifest, by their digests' order. NotFound if there are none."""
    found = []
    for item in registry.referrers(repository, digest, artifact_type):
        layers = registry.get_manifest(repository, item.digest).content.get("layers") or []
        found += [registry.get_blob(repository, Descriptor.from_json(layer), dsse.LIMIT) for layer in layers[:1]]
    if not found:
        raise NotFound(f"nothing of the type {artifact_type} is attached to {registry.address}/{repository}@{digest}")
    return found


def attached_sbom(registry: Registry, repository: str, digest: str, public_pem: bytes | None) -> dict[str, Any]:
    """The SBOM that is attached to a manifest and named by its signed provenance.

    Args:
        public_pem: the keys of which one must have signed the provenance; None to read the SBOM unverified.

    Raises:
        VerificationFailed: there is none that the provenance names.
    """
    documents = attached(registry, repository, digest, SBOM_TYPE)
    if public_pem is None:
        return _document(documents[0])
    statement = attached_statement(registry, repository, digest, public_pem)
    products = statement["predicate"].get("runDetails", {}).get("byproducts") or []
    named = {item.get("digest", {}).get("sha256") for item in products if item.get("name") == "sbom"}
    for data in documents:
        if sha256_bytes(data) in named:
            return _document(data)
    raise VerificationFailed(f"the SBOM that is attached to {registry.address}/{repository}@{digest} is not the one that its signed provenance names")


def attached_statement(registry: Registry, repository: str, digest: str, public_pem: bytes | None) -> dict[str, Any]:
    """The provenance that is attached to a manifest.

    Args:
        public_pem: the keys of which one must have signed it; None to read it unverified.

    Raises:
        VerificationFailed: none has a good signature and names this digest as its subject; the first one's reason.
    """
    hexadecimal, reasons = digest.removeprefix("sha256:"), []
    for data in attached(registry, repository, digest, PROVENANCE_TYPE):
        try:
            statement = dsse.open_envelope(data, public_pem) if public_pem else dsse.read_unverified(data)
        except VerificationFailed as error:
            reasons.append(error)
            continue
        if about(statement, hexadecimal):
            return statement
        reasons.append(VerificationFailed(f"the provenance attached to {registry.address}/{repository}@{digest} is about something else"))
    raise reasons[0]


def about(statement: Mapping[str, Any], hexadecimal: str) -> bool:
    """Whether a subject of the statement has this SHA-256."""
    for subject in statement["subject"]:
        digest = subject.get("digest") if isinstance(subject, dict) else None
        if isinstance(digest, dict) and digest.get("sha256") == hexadecimal:
            return True
    return False


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"the SBOM is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        raise VerificationFailed("the SBOM is not a CycloneDX document")
    return document
