"""Signatures of images in cosign's format, by key: made, and verified fail-closed.

The format is cosign's "signature specification" (specs/SIGNATURE_SPEC.md of sigstore/cosign), as version 2 writes it: a *simple signing*
payload names the image's digest; a manifest under the tag `sha256-<hex>.sig` has one layer for each signature, with the payload as its blob
and the signature (ECDSA P-256 over SHA-256, ASN.1, base64) as its annotation. There is no transparency log: trust is in the key.

A payload names three things, of which cosign itself checks the first only:

| field | rule here |
|---|---|
| `docker-manifest-digest` | must be the image's digest |
| `docker-reference` | its repository must be the image's, or the end of it after a `/`; the registry's host is not compared, because a mirror has another |
| `optional.tag` | where the key has signed for certain tags, and the caller asks by a tag, that must be one of them |
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ckp.clients.oci.registry import Registry
from ckp.clients.oci.store import CONFIG, MANIFEST, Descriptor, Manifest, canonical, fallback_tag, sha256
from ckp.kits.errors import InvalidInput, NotFound, VerificationFailed

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
PAYLOAD_TYPE = "cosign container image signature"
TAG = "tag"
"""The key in a payload's `optional` that names the tag which was signed."""
MAX_SIGNATURES = 100
MAX_PAYLOAD = 64 << 10
MAX_ATTESTATION = 16 << 20
"""Bytes; a signature has 72 at most."""


def signature_tag(digest: str) -> str:
    """The tag under which cosign keeps an image's signatures."""
    return f"{fallback_tag(digest)}.sig"


def attestation_tag(digest: str) -> str:
    """The tag under which cosign keeps an image's attestations."""
    return f"{fallback_tag(digest)}.att"


# -- signing


def sign_image(
    registry: Registry, repository: str, digest: str, key_pem: bytes, annotations: Mapping[str, str] | None = None, *, identity: str = ""
) -> Descriptor:
    """Sign an image, as `cosign sign --key … --tlog-upload=false -a …` does; returns the manifest of its signatures.

    If this key has signed it with these annotations, nothing is pushed; signatures of other keys stay. The same input gives the same bytes
    (RFC 6979).

    Args:
        key_pem: the private key, ECDSA P-256, PKCS#8.
        annotations: what else is signed, such as the tag (`TAG`).
        identity: `host/repository` that clients will name it by, if that is not this registry's address.

    Raises:
        NotFound: there is no such image.
        VerificationFailed: the registry has other bytes under this digest.
    """
    registry.get_manifest(repository, digest)
    key = private_key(key_pem)
    payload = canonical(
        {
            "critical": {
                "identity": {"docker-reference": identity or f"{registry.address}/{repository}"},
                "image": {"docker-manifest-digest": digest},
                "type": PAYLOAD_TYPE,
            },
            "optional": dict(annotations) if annotations else None,
        }
    )
    signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))).decode()
    mine = [key.public_key()]

    def there(signed: Signed) -> bool:
        return signed.by(mine) and not signed.wrong(repository, digest, annotations or {})

    layer = Descriptor(SIMPLE_SIGNING, sha256(payload), len(payload), annotations=((SIGNATURE, signature),))
    manifest = registry.find_manifest(repository, signature_tag(digest))
    if manifest is not None and any(there(signed) for signed in _readable(registry, repository, manifest)):
        return manifest.descriptor
    return append_layer(registry, repository, signature_tag(digest), layer, payload)


def attest_image(registry: Registry, repository: str, digest: str, envelope: bytes, predicate_type: str) -> Descriptor:
    """Add a signed statement (a DSSE envelope) where `cosign verify-attestation` looks for it; the same twice is there once.

    Args:
        predicate_type: of the statement in the envelope, such as `https://slsa.dev/provenance/v1`.
    """
    registry.get_manifest(repository, digest)
    # cosign leaves the signature of an attestation empty here: it is in the envelope.
    layer = Descriptor(DSSE, sha256(envelope), len(envelope), annotations=((SIGNATURE, ""), ("predicateType", predicate_type)))
    return append_layer(registry, repository, attestation_tag(digest), layer, envelope)


def append_layer(registry: Registry, repository: str, tag: str, layer: Descriptor, data: bytes | None) -> Descriptor:
    """Add a signature or an attestation to those that are under `tag`; its content is there already if `data` is None."""

    def change(present: Manifest | None) -> Manifest | None:
        layers = present.layers if present else []
        if layer in layers:
            return None
        if len(layers) >= MAX_SIGNATURES:
            raise VerificationFailed(f"{registry.address}/{repository}:{tag} has {len(layers)} entries already, and more are never read")
        # The config of cosign's: an image without a system, whose layers are what was signed.
        config = {
            "architecture": "",
            "config": {},
            "created": "0001-01-01T00:00:00Z",
            "history": [{"created": "0001-01-01T00:00:00Z"}] * (len(layers) + 1),
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [item.digest for item in [*layers, layer]]},
        }
        body = canonical(config)
        stored = Descriptor(CONFIG, sha256(body), len(body))
        registry.push_blob(repository, stored, body)
        listed = [item.to_json() for item in [*layers, layer]]
        return Manifest(MANIFEST, canonical({"schemaVersion": 2, "mediaType": MANIFEST, "config": stored.to_json(), "layers": listed}))

    if data is not None:
        registry.push_blob(repository, layer, data)
    written = registry.amend(repository, tag, change)
    assert written is not None, "there is a manifest now, since a layer was added or found"
    return written


# -- verifying


@dataclass(frozen=True)
class Signed:
    """One signature: the bytes that were signed, and the signature over them (empty if it is not base64)."""

    payload: bytes
    signature: bytes

    def by(self, keys: list[ec.EllipticCurvePublicKey]) -> bool:
        """Whether one of these keys made it."""
        return any(_good(key, self) for key in keys)

    @property
    def malformed(self) -> bool:
        """Whether it is not an ECDSA signature at all."""
        try:
            decode_dss_signature(self.signature)
        except ValueError:
            return True
        return False

    def wrong(self, repository: str, digest: str, annotations: Mapping[str, str], signed_as: str = "") -> str:
        """What a payload says that it must not, as a sentence's end; empty if it says what it must. Ask it of a good signature only."""
        try:
            data = json.loads(self.payload)
            critical, optional = data["critical"], data.get("optional") or {}
            kind, named, reference = critical["type"], critical["image"]["docker-manifest-digest"], critical["identity"]["docker-reference"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "has a payload that is not of cosign's format"
        if kind != PAYLOAD_TYPE or not isinstance(reference, str) or not isinstance(optional, dict):
            return f"has a payload of another kind: {str(kind)[:80]}"
        if named != digest:
            return f"is for another image: {str(named)[:80]}"
        if not _same_repository(reference, signed_as or repository):
            return f"is for another repository: {reference[:200]}"
        missing = [f"{name}={value}" for name, value in sorted(annotations.items()) if optional.get(name) != value]
        return f"does not say {', '.join(missing)}" if missing else ""

    @property
    def tag(self) -> str | None:
        """The tag that was signed, if one was."""
        value = (json.loads(self.payload).get("optional") or {}).get(TAG)
        return value if isinstance(value, str) else None


def verify_image(
    registry: Registry,
    repository: str,
    digest: str,
    trusted: bytes,
    *,
    annotations: Mapping[str, str] | None = None,
    tag: str = "",
    signed_as: str = "",
) -> None:
    """Verify that an image is signed by a trusted key.

    Its manifest's bytes are checked, and not those of its layers: who pulls them does that.

    Args:
        trusted: the trusted keys, ECDSA P-256; one or several PEM blocks. Revoked ones may be among them (`revoked_keys`).
        annotations: what a signature must say (`cosign verify -a`).
        tag: the tag by which the image was asked for, if it was: an older image under a newer one's tag is rejected.
        signed_as: the repository that must be named, if the mirror has renamed it.

    Raises:
        VerificationFailed: with a sentence of its own for: no signature; one by another key, or a revoked one; a damaged one; a payload that
            names another image, another repository, another tag, or lacks an annotation; bytes that are not what their digest says.
        NotFound: there is no such image.
    """
    keys, revoked = public_keys(trusted), revoked_keys(trusted)
    name = f"{registry.address}/{repository}@{digest}"
    registry.get_manifest(repository, digest)
    manifest = registry.find_manifest(repository, signature_tag(digest))
    if manifest is None:
        raise VerificationFailed(
            f"{name} has no signature", resolution="`ckp dist sign` signs what was built here; what comes from elsewhere must be signed there"
        )
    findings: list[str] = []
    tags: set[str] = set()
    good = False
    for signed in _signatures(registry, repository, manifest):
        if by := next((item for item in revoked if signed.by([item.key])), None):
            findings.append(f"is by {by}")
        elif not signed.by(keys):
            findings.append("is damaged: it is not an ECDSA signature" if signed.malformed else "is not by a trusted key, or what it signs was altered")
        elif problem := signed.wrong(repository, digest, annotations or {}, signed_as):
            findings.append(problem)
        else:
            good = True
            if (signed_tag := signed.tag) is not None:
                tags.add(signed_tag)
    if not good:
        _refuse(name, findings)
    if tag and tags and tag not in tags:
        raise VerificationFailed(
            f"{name} is under the tag {tag}, and was signed for {', '.join(sorted(tags))}",
            resolution="the tag was moved: use the image by its digest, or push the right one again",
        )


def _refuse(name: str, findings: list[str]) -> None:
    if not findings:
        raise VerificationFailed(f"{name} has no signature: what its signatures' tag names is something else")
    # A good key's signature that says something else tells more than one of a key that we don't know.
    telling = sorted(set(findings), key=lambda text: (text.startswith("is not by"), text.startswith("is damaged"), text))
    raise VerificationFailed(
        f"{name}: its signature {telling[0]}",
        details="\n".join(f"a signature {text}" for text in telling) if len(telling) > 1 else "",
        resolution="if it is unchanged, publish it again: that signs it with the current key" if telling[0].startswith("is by the key") else "",
    )


def _signatures(registry: Registry, repository: str, manifest: Manifest) -> Iterator[Signed]:
    layers = [layer for layer in manifest.layers if layer.media_type == SIMPLE_SIGNING]
    if len(layers) > MAX_SIGNATURES:
        raise VerificationFailed(f"{registry.address}/{repository} lists {len(layers)} signatures of one image, and the limit is {MAX_SIGNATURES}")
    for layer in layers:
        text = dict(layer.annotations).get(SIGNATURE, "")
        try:
            signature = base64.b64decode(text, validate=True) if len(text) <= 1024 else b""
        except (binascii.Error, ValueError):
            signature = b""
        try:
            payload = registry.get_blob(repository, layer, MAX_PAYLOAD)
        except NotFound as error:
            raise VerificationFailed(f"{registry.address}/{repository}: a signature's payload is missing", details=error.brief) from error
        yield Signed(payload, signature)


def _readable(registry: Registry, repository: str, manifest: Manifest) -> Iterator[Signed]:
    """As `_signatures`, and when something there cannot be read, those before it: who signs adds a good one to whatever is there."""
    try:
        yield from _signatures(registry, repository, manifest)
    except VerificationFailed:
        return


def _good(key: ec.EllipticCurvePublicKey, signed: Signed) -> bool:
    try:
        key.verify(signed.signature, signed.payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _same_repository(reference: str, repository: str) -> bool:
    """`host/ckp/etcd` was signed: `ckp/etcd` is that, and so is `mirrors/ckp/etcd`; `etcd` and `other-ckp/etcd` are not."""
    path = re.sub(r"(@sha256:[0-9a-f]{64}|:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})$", "", reference)
    first, slash, rest = path.partition("/")
    # As docker reads names: what is before the first slash is a host if it has a dot or a port, or is localhost.
    signed = rest if slash and (first == "localhost" or re.search(r"[.:]", first)) else path
    return bool(signed) and (repository == signed or repository.endswith(f"/{signed}"))


def private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """An ECDSA P-256 key; InvalidInput if it is something else (what was in the file is not shown)."""
    try:
        key: Any = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("the image signing key is not an unencrypted ECDSA P-256 key in PEM (PKCS#8)")
    return key


def public_keys(pem: bytes) -> list[ec.EllipticCurvePublicKey]:
    """The ECDSA P-256 keys of a PEM file, but for those that it also has as revoked; InvalidInput if it has none, or something else."""
    blocks = _blocks(pem)
    keys = [_public_key(block.pem) for block in blocks if not block.revoked]
    if not keys:
        raise InvalidInput("there is no image public key here (PEM)", resolution="name the file that `ckp keys export --images` wrote where they are signed")
    revoked = {key_id(_public_key(block.pem)) for block in blocks if block.revoked}
    return [key for key in keys if key_id(key) not in revoked]


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as it is handed out."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """A key's fingerprint: the SHA-256 of its SubjectPublicKeyInfo (DER), in hex."""
    return sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).removeprefix("sha256:")


@dataclass(frozen=True)
class RevokedKey:
    """A key whose signatures are no longer accepted. It is written under a label of its own, so that it is not mistaken for a trusted key."""

    key: ec.EllipticCurvePublicKey
    reason: str

    def __str__(self) -> str:
        return f"the key {key_id(self.key)}, which is revoked ({self.reason})"

    def pem(self) -> bytes:
        """As `revoked_keys` reads it."""
        return f"Reason: {self.reason}\n".encode() + public_pem(self.key).replace(b" PUBLIC KEY", b" REVOKED PUBLIC KEY")


def revoked_keys(pem: bytes) -> list[RevokedKey]:
    """The revoked keys of a PEM file; InvalidInput if one is something else, or if anything that looks like a revocation can't be read."""
    return [RevokedKey(_public_key(block.pem), block.reason) for block in _blocks(pem) if block.revoked]


@dataclass(frozen=True)
class _Block:
    """A public key in PEM, with the label of a trusted one, and the reason of its revocation."""

    pem: bytes
    revoked: bool
    reason: str


_FRAME = re.compile(r"-----(BEGIN|END) ([A-Z0-9 ]+)-----", re.IGNORECASE)
_REASON = re.compile(r"reason\s*:\s*(.*)", re.IGNORECASE)
_REMNANT = re.compile(r"^\s*-|-\s*$|-----|revoked|reason", re.IGNORECASE)
"""What may be left of a revocation in a line outside of a block, with which it would be passed over as a comment."""
PUBLIC, REVOKED = "PUBLIC KEY", "REVOKED PUBLIC KEY"


def _blocks(pem: bytes) -> list[_Block]:
    """The blocks of a file with keys for images, whatever its line ends and letter case.

    Revocations must not be lost by a slip, so nothing that could be one is passed over: a block that is cut off, a reason without a revoked key,
    or the word outside of any block.

    Raises:
        InvalidInput: with the number of the line.
    """
    found: list[_Block] = []
    label, reason, body = "", "", [""]

    def broken(number: int, why: str) -> InvalidInput:
        return InvalidInput(
            f"the file with keys for images can't be read: line {number} {why}",
            resolution="what looks like a revocation must be readable, so write the file again: `ckp keys export --images`",
        )

    number = 0
    for number, raw in enumerate(pem.decode("utf-8", "replace").splitlines(), 1):
        line = raw.strip()
        frame = _FRAME.fullmatch(line)
        if frame and frame[1].upper() == "BEGIN" and not label:
            label, body = " ".join(frame[2].upper().split()), []
            if label not in (PUBLIC, REVOKED):
                raise broken(number, f"begins a block of another kind ({label[:40]}), and not a public key")
            if reason and label != REVOKED:
                raise broken(number, "begins a key that is not revoked, and the line before it has a reason")
        elif frame and label and frame[1].upper() == "END" and " ".join(frame[2].upper().split()) == label:
            text = "\n".join([f"-----BEGIN {PUBLIC}-----", *body, f"-----END {PUBLIC}-----", ""])
            found.append(_Block(text.encode(), label == REVOKED, reason or "no reason given"))
            label, reason = "", ""
        elif label and not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", line):
            raise broken(number, "ends a block in the middle, or is no part of one")
        elif label:
            body.append(line)
        elif given := _REASON.fullmatch(line):
            reason = given[1].strip()[:200] or "no reason given"
        elif _REMNANT.search(line):
            raise broken(number, "looks like a part of a revoked key, and is in no block")
        elif line and reason:
            raise broken(number, "stands between a reason and the key that it is for")
    if label or reason:
        raise broken(number, "is the last, and a block or a reason before it has no end")
    return found


def _public_key(block: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key: Any = serialization.load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("an image's public key is not an ECDSA P-256 public key")
    return key
