"""The service that holds the virtual address, on a master: its unit, its certificate, and what it may do in the cluster.

It is `ckp:virtual-address`, who may get, update and create one Lease and nothing else. (RBAC can't restrict POST by name, so the service creates the Lease
by PUT, for which the API server asks for `create` with the name: k8s.io/apiserver, pkg/endpoints/handlers/update.go.)
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from typing import Any

from ckp.agent.journal import Journal
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.processes import own_command, run
from ckp.hostkit.waits import wait_for
from ckp.standalone.address.lease import Timing
from ckp.standalone.address.network import link_of
from ckp.standalone.address.service import BOOTSTRAP, CA, CERTIFICATE, FOLDER, KEY, LEASE, NAMESPACE, SETTINGS, Settings, lease_object
from ckp.standalone.cluster import PKI, RUN_DIR, kubectl

UNIT = "ckp-virtual-address.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
USER = "ckp:virtual-address"
CERTIFICATE_DAYS = 3650
HELD_SECONDS = 30.0


def unit_text(command: list[str]) -> str:
    """The unit. Its process may change this host's addresses and send ARP, and reads its settings, certificate and CA."""
    return f"""# Written by ckp-agent. Removed when the host leaves its cluster.
[Unit]
Description=CKP: the virtual address of this cluster's API servers
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={shlex.join([*command, "standalone", "address", "--settings", SETTINGS])}
Restart=always
RestartSec=1
TimeoutStopSec=15
UMask=0077
CPUWeight=1000
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
LimitCORE=0

[Install]
WantedBy=multi-user.target
"""


def _write(journal: Journal, settings: Settings) -> None:
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    atomic_write(SETTINGS, settings.to_json(), mode=0o600)
    journal.replace_file(UNIT_FILE, unit_text(own_command()))
    run(["systemctl", "daemon-reload"], timeout=60)


def _start() -> None:
    run(["systemctl", "enable", UNIT], timeout=60, what=f"enabling {UNIT}")
    run(["systemctl", "restart", UNIT], timeout=60, what=f"starting {UNIT}", resolution=f"journalctl -u {UNIT}")


def _wait_held(settings: Settings) -> None:
    def missing() -> str:
        return "" if link_of(settings.address) else f"this host does not have {settings.address} yet"

    try:
        wait_for(missing, timeout=HELD_SECONDS, every=0.5, what=f"this host has {settings.address}", resolution=f"journalctl -u {UNIT}", reason="AddressFailed")
    except AgentError as error:
        error.details += "\n" + run(["journalctl", "-u", UNIT, "-n", "10", "--no-pager", "-o", "cat"], timeout=20, check=False).stdout
        raise


def hold(journal: Journal, settings: Settings) -> None:
    """On the first master, before its control plane exists: start the service, which holds the address without a lease. Idempotent. Raises AgentError."""
    os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
    atomic_write(BOOTSTRAP, "", mode=0o600)
    _write(journal, settings)
    _start()
    _wait_held(settings)


def elect(settings: Settings, *, restored: bool = False) -> None:
    """On the first master, when its API server runs: from now on the holder is elected. Idempotent. Raises AgentError.

    Args:
        restored: the cluster began with the data of a backup, so its Lease may name a holder of before: all its hosts are gone.
    """
    issue_certificate()
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(access()), what="applying the rights of the address service")
    was = _lease()
    if not was or (restored and os.path.exists(BOOTSTRAP) and was.get("holderIdentity") != settings.node):
        # This host has the address already, so the Lease begins with it as the holder: waiting for its turn, it would be without the address.
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        kubectl(
            "replace" if was else "create",
            "-f",
            "-",
            stdin=json.dumps(lease_object(settings.node, None, Timing(), now, now)),
            what="creating the address' Lease",
        )
    before = _lease()
    remove(BOOTSTRAP)

    def missing() -> str:
        spec = _lease()
        return "" if spec.get("holderIdentity") and spec != before else "the service has not renewed the lease yet"

    wait_for(missing, timeout=HELD_SECONDS, every=0.5, what="the address' lease is renewed", resolution=f"journalctl -u {UNIT}", reason="AddressFailed")
    _wait_held(settings)


def is_set_up(settings: Settings) -> bool:
    """Whether the service runs with these settings, and has its certificate."""
    if not os.path.exists(CERTIFICATE) or read_text(SETTINGS) != settings.to_json():
        return False
    return run(["systemctl", "is-active", UNIT], timeout=20, check=False).stdout.strip() == "active"


def _lease() -> dict[str, Any]:
    text = kubectl("-n", NAMESPACE, "get", "lease", LEASE, "-o", "json", "--ignore-not-found")
    spec: dict[str, Any] = json.loads(text)["spec"] if text.strip() else {}
    return spec


def take_part(journal: Journal, settings: Settings) -> str:
    """On a further master: start the service, which holds the address when it is this host's turn. Idempotent; returns a note. Raises AgentError."""
    remove(BOOTSTRAP)
    _write(journal, settings)
    issue_certificate()
    _start()
    return f"{settings.address}, held by {_lease().get('holderIdentity', 'none of the masters')}"


def stop() -> None:
    """Stop the service for good, if there is one. It removes the address from this host first, and gives the lease up."""
    if os.path.exists(UNIT_FILE):
        run(["systemctl", "disable", "--now", UNIT], timeout=60, check=False)
    remove(BOOTSTRAP)


def access() -> dict[str, Any]:
    """What the service may do in the cluster."""
    metadata = {"name": USER, "namespace": NAMESPACE}
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [LEASE], "verbs": ["get", "update", "create"]}
    rbac, group = "rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": rbac, "kind": "Role", "metadata": metadata, "rules": [rule]},
            {
                "apiVersion": rbac,
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": "Role", "name": USER},
                "subjects": [{"apiGroup": group, "kind": "User", "name": USER}],
            },
        ],
    }


def issue_certificate() -> None:
    """Make the service's key and its certificate, signed by the cluster's CA, for as long as kubeadm's here. Raises ProcessFailed."""
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    extensions = os.path.join(FOLDER, "client.cnf")
    request = os.path.join(FOLDER, "client.csr")
    key = run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], timeout=60, what="making the address service's key").stdout
    atomic_write(KEY, key, mode=0o600)
    try:
        made = run(["openssl", "req", "-new", "-key", KEY, "-subj", f"/CN={USER}"], timeout=60, what="making the address service's request").stdout
        atomic_write(request, made, mode=0o600)
        atomic_write(extensions, "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n", mode=0o600)
        argv = ["openssl", "x509", "-req", "-sha256", "-in", request, "-CA", CA, "-CAkey", f"{PKI}/ca.key", "-days", str(CERTIFICATE_DAYS)]
        argv += ["-set_serial", f"0x{secrets.token_hex(16)}", "-extfile", extensions]
        signed = run(argv, timeout=60, what="signing the address service's certificate").stdout
    finally:
        remove(request)
        remove(extensions)
    atomic_write(CERTIFICATE, signed, mode=0o600)
