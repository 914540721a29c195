"""Join tokens: all that another host needs to become a node of this cluster, in one line, for a short time.

`ckp-join.` and base64url of JSON. It has a bootstrap token of kubeadm's and, for a master, the key of the certificates that kubeadm keeps encrypted in the
cluster for two hours. So it is a secret: it is read from a file or standard input, and never written to the journal or a log.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import ipaddress
import json
import os
import re
import secrets
import string
import time
from dataclasses import dataclass, field
from typing import Any

from ckp.agent.journal import Journal
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.processes import run
from ckp.hostkit.waits import wait_for
from ckp.standalone.cluster import ADMIN, PKI, RUN_DIR, endpoint, kubectl
from ckp.standalone.members import require_master

PREFIX = "ckp-join."
VERSION = 1
LONGEST = 8192
TIME = "%Y-%m-%dT%H:%M:%SZ"
SHORTEST_TTL, LONGEST_TTL = 60, 24 * 3600
CERTIFICATES_SECONDS = 2 * 3600
"""How long kubeadm keeps the uploaded certificates (kubeadm init phase upload-certs)."""
KEY_FILE = f"{RUN_DIR}/certificate-key"
SIGNED_SECONDS = 60.0
GROUP = "system:bootstrappers:kubeadm:default-node-token"
NEW_TOKEN = "make a new one with `ckp-agent standalone token create` on a master"


@dataclass(frozen=True)
class JoinToken:
    """A join token.

    Args:
        endpoint: `host:port` of the cluster's API server.
        ca_hash: `sha256:` and the digest of the public key of the cluster's CA (kubeadm's --discovery-token-ca-cert-hash).
        token: a bootstrap token of kubeadm's.
        certificate_key: of the certificates in the cluster; "" for workers.
        bundle: `sha256:…` of the first master's bundle; "" if it came from a folder. Hosts with another OS have another one.
        expires: RFC 3339, UTC.
    """

    endpoint: str
    ca_hash: str
    token: str = field(repr=False)
    release: str
    pod_cidr: str
    service_cidr: str
    expires: str
    certificate_key: str = field(default="", repr=False)
    virtual_address: str = ""
    bundle: str = ""

    @property
    def host(self) -> str:
        """Of the endpoint."""
        return self.endpoint.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Of the endpoint."""
        return int(self.endpoint.rpartition(":")[2])

    def expired(self, now: float) -> bool:
        """Whether it is too late, at `now` (seconds since the epoch)."""
        return now >= calendar.timegm(time.strptime(self.expires, TIME))


FIELDS = {
    "endpoint": "endpoint",
    "caHash": "ca_hash",
    "token": "token",
    "certificateKey": "certificate_key",
    "release": "release",
    "bundle": "bundle",
    "podCidr": "pod_cidr",
    "serviceCidr": "service_cidr",
    "virtualAddress": "virtual_address",
    "expires": "expires",
}
"""Names in the JSON, and here."""
FORMS = {
    "endpoint": r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}",
    "ca_hash": r"sha256:[0-9a-f]{64}",
    "token": r"[a-z0-9]{6}\.[a-z0-9]{16}",
    "certificate_key": r"(?:[0-9a-f]{64})?",
    "release": r"v[0-9]+\.[0-9]+\.[0-9]+(?:-[A-Za-z0-9.]+)?",
    "bundle": r"(?:sha256:[0-9a-f]{64})?",
    "pod_cidr": r"[0-9./]+",
    "service_cidr": r"[0-9./]+",
    "virtual_address": r"[0-9.]*",
    "expires": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z",
}


def encode(token: JoinToken) -> str:
    """The token as one line."""
    data: dict[str, Any] = {"v": VERSION, **{name: value for name, own in FIELDS.items() if (value := getattr(token, own))}}
    return PREFIX + base64.urlsafe_b64encode(json.dumps(data, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(text: str) -> JoinToken:
    """Read a token. InvalidInput if it is none; the error does not repeat it."""
    line = text.strip()

    def wrong(why: str) -> InvalidInput:
        return InvalidInput(f"this is not a join token: {why}", resolution=f"copy the whole line that begins with {PREFIX}, or {NEW_TOKEN}")

    if not line:
        raise wrong("it is empty")
    if len(line) > LONGEST or not re.fullmatch(re.escape(PREFIX) + r"[A-Za-z0-9_-]+", line):
        raise wrong(f"it must be one line, {PREFIX} and base64url")
    body = line[len(PREFIX) :]
    try:
        data = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        raise wrong("a part of it is missing or was changed") from None
    if not isinstance(data, dict):
        raise wrong("it holds no object")
    if data.get("v") != VERSION:
        raise InvalidInput(
            f"the join token has version {str(data.get('v'))[:20]!r}, this tool reads {VERSION}", resolution="use the ckp-agent of the cluster's release"
        )
    values = {own: data.get(name, "") for name, own in FIELDS.items()}
    for name, own in FIELDS.items():
        if not isinstance(values[own], str) or not re.fullmatch(FORMS[own], values[own]):
            raise wrong(f"its {name} is malformed")
    try:
        time.strptime(values["expires"], TIME)
        for name in ("pod_cidr", "service_cidr"):
            ipaddress.IPv4Network(values[name])
        if values["virtual_address"]:
            ipaddress.IPv4Address(values["virtual_address"])
        if not 0 < int(values["endpoint"].rpartition(":")[2]) < 65536:
            raise ValueError
    except ValueError:
        raise wrong("a time, a network or an address in it is malformed") from None
    return JoinToken(**values)


def seconds_of(text: str) -> int:
    """A time to live such as 30m, 1h or 900s, in seconds. InvalidInput if it is none, or too short or too long."""
    match = re.fullmatch(r"([0-9]{1,6})([smh])", text)
    seconds = int(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2)] if match else 0
    if not SHORTEST_TTL <= seconds <= LONGEST_TTL:
        raise InvalidInput(f"{text!r} is not a time to live of a token", resolution="write it like 30m or 1h: at least 1m, at most 24h")
    return seconds


def public_key_hash(public_key_pem: str) -> str:
    """kubeadm's hash of a CA: SHA-256 of its SubjectPublicKeyInfo, from what `openssl x509 -pubkey` prints. Raises ValueError."""
    match = re.search(r"-----BEGIN PUBLIC KEY-----(.*?)-----END PUBLIC KEY-----", public_key_pem, re.S)
    if match is None:
        raise ValueError("no public key")
    return "sha256:" + hashlib.sha256(base64.b64decode("".join(match.group(1).split()), validate=True)).hexdigest()


def hash_of_certificate(pem: str) -> str:
    """The same of a certificate. Raises ProcessFailed."""
    shown = run(["openssl", "x509", "-pubkey", "-noout"], timeout=20, stdin=pem.encode(), what="reading the cluster's CA")
    return public_key_hash(shown.stdout)


# -- making one, on a master -----------------------------------------------------------------------------------------------


def create(journal: Journal, *, control_plane: bool, ttl: str) -> JoinToken:
    """Make a token in the cluster of this master. Raises InvalidInput, AgentError."""
    seconds = seconds_of(ttl)
    require_master(journal)
    member = journal.member
    assert member is not None
    if not {"csi", "node"} & set(journal.done):
        raise InvalidInput("the cluster on this host is not complete", resolution="run the command that makes it again: it continues")
    settings = member.settings
    if control_plane and not settings.get("virtual_address"):
        raise InvalidInput(
            "this cluster has no virtual address, so it can't have another master: its nodes know the address of this host alone",
            resolution="install with --virtual-address, or join workers",
        )
    if control_plane and seconds > CERTIFICATES_SECONDS:
        raise InvalidInput(
            "a token for a master can be valid for 2h at most", resolution="the cluster keeps its certificates no longer", details=f"--ttl {ttl}"
        )
    expires = time.strftime(TIME, time.gmtime(time.time() + seconds))
    alphabet = string.ascii_lowercase + string.digits
    name, secret = ("".join(secrets.choice(alphabet) for _ in range(length)) for length in (6, 16))
    key = _upload_certificates(member.release) if control_plane else ""
    kubectl("create", "-f", "-", stdin=json.dumps(bootstrap_secret(name, secret, expires)), what="making a bootstrap token")
    _wait_signed(name)
    digest = re.search(r"@(sha256:[0-9a-f]{64})\Z", member.bundle)
    return JoinToken(
        endpoint=endpoint(),
        ca_hash=hash_of_certificate(read_text(f"{PKI}/ca.crt")),
        token=f"{name}.{secret}",
        release=member.release,
        pod_cidr=settings["pod_cidr"],
        service_cidr=settings["service_cidr"],
        expires=expires,
        certificate_key=key,
        virtual_address=settings.get("virtual_address", ""),
        bundle=digest.group(1) if digest else "",
    )


def bootstrap_secret(name: str, secret: str, expires: str) -> dict[str, Any]:
    """The Secret that is a bootstrap token (Kubernetes: "Authenticating with Bootstrap Tokens"), as kubeadm makes them."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"bootstrap-token-{name}", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": name,
            "token-secret": secret,
            "expiration": expires,
            "description": "ckp-agent standalone token create",
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": GROUP,
        },
    }


def _wait_signed(name: str) -> None:
    """Wait until the controller-manager has signed the cluster's public information with the token: joins ask for it."""

    def missing() -> str:
        data = kubectl("-n", "kube-public", "get", "configmap", "cluster-info", "-o", "json", check=False)
        return "" if f'"jws-kubeconfig-{name}"' in data else "cluster-info has no signature by the token yet"

    wait_for(missing, timeout=SIGNED_SECONDS, every=0.5, what="the token can be used", resolution="is kube-controller-manager running?", reason="TokenUnsigned")


def _upload_certificates(release: str) -> str:
    """Put the cluster's CAs into it, encrypted, as kubeadm does; returns the key. Tokens that this host makes within an hour have the same one."""
    os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
    try:
        fresh = 0 <= time.time() - os.stat(KEY_FILE).st_mtime < CERTIFICATES_SECONDS / 2
    except OSError:
        fresh = False
    key = read_text(KEY_FILE).strip() if fresh else ""
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        key = secrets.token_hex(32)
    config = os.path.join(RUN_DIR, "upload.json")
    documents: list[dict[str, Any]] = [
        {"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "InitConfiguration", "certificateKey": key},
        {"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "kubernetesVersion": release},  # else kubeadm asks the internet for one
    ]
    atomic_write(config, "\n---\n".join(map(json.dumps, documents)) + "\n", mode=0o600)
    try:
        argv = ["kubeadm", "init", "phase", "upload-certs", "--upload-certs", "--config", config, "--kubeconfig", ADMIN]
        # Its output has the key, so it is in no error.
        if run(argv, timeout=120, check=False).code != 0:
            raise AgentError(
                "kubeadm could not put the cluster's certificates into the cluster", resolution="is its API server ready? kubectl get --raw /readyz"
            )
    finally:
        remove(config)
    atomic_write(KEY_FILE, key + "\n", mode=0o600)
    return key
