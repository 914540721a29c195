"""This host's identity: a private key that never leaves the host, and the certificate that the hub issues for it after approval."""

from __future__ import annotations

import json
import os
import re
import socket

from ckp.agent import messages
from ckp.agent.hub.errors import EnrolmentFailed
from ckp.hostkit.files import atomic_write, read_text, remove, sync_folder
from ckp.hostkit.processes import run


class Identity:
    """The host's key, certificate and CA in the state folder. cert.pem is written last: once it exists, the host is enrolled."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self.key = os.path.join(state_dir, "key.pem")
        self.certificate = os.path.join(state_dir, "cert.pem")
        self.ca = os.path.join(state_dir, "ca.pem")
        self.about = os.path.join(state_dir, "identity.json")
        self.ticket = os.path.join(state_dir, "enrolment.json")
        self.next_key = os.path.join(state_dir, "key-next.pem")
        self.next_certificate = os.path.join(state_dir, "cert-next.pem")
        self.last_key = os.path.join(state_dir, "key-last.pem")
        self.last_certificate = os.path.join(state_dir, "cert-last.pem")
        self._settle()

    @property
    def enrolled(self) -> bool:
        """Whether this host has everything that the channel needs."""
        return all(os.path.exists(path) for path in (self.key, self.certificate, self.ca, self.about))

    @property
    def host(self) -> str:
        """The host's name, as the hub gave it; "" before enrolment."""
        try:
            return str(json.loads(read_text(self.about, "{}")).get("host", ""))
        except ValueError:
            return ""

    def make_csr(self) -> str:
        """A CSR for the key, which is generated on first use (ECDSA P-256, 0600). The hub ignores the subject. Raises ProcessFailed."""
        os.makedirs(self.state_dir, mode=0o700, exist_ok=True)
        if not read_text(self.key):
            _make_key(self.key)
        return _csr(self.key)

    def make_next_csr(self) -> str:
        """A CSR for a new key: a renewed certificate never has the old key. Raises ProcessFailed."""
        self._settle()  # an earlier renewal that was not completed must not get this one's key
        _make_key(self.next_key)
        return _csr(self.next_key)

    def store(self, status: messages.EnrolmentStatus, pinned_ca: str) -> None:
        """Store what the hub issued, if the certificate matches the key.

        Raises:
            EnrolmentFailed: it does not match, or is not a certificate.
        """
        self._check_pair(status.certificate, self.key, status.ca)
        atomic_write(self.ca, status.ca or read_text(pinned_ca), mode=0o644)
        atomic_write(self.about, json.dumps({"host": status.host}), mode=0o644)
        atomic_write(self.certificate, status.certificate, mode=0o644)
        remove(self.ticket)

    def store_next(self, issued: messages.IssuedCertificate) -> None:
        """Start to use a renewed certificate. A power cut at any moment leaves the old pair or the new one; both are valid.

        Raises:
            EnrolmentFailed: it does not match the key of the request, or is not a certificate; the old one stays in use.
        """
        self._check_pair(issued.certificate, self.next_key, issued.ca)
        atomic_write(self.ca, issued.ca, mode=0o644)
        atomic_write(self.next_certificate, issued.certificate, mode=0o644)
        self._settle()

    def _settle(self) -> None:
        """Complete a renewal: once cert-next.pem exists, which was checked against key-next.pem before, the new pair is complete.

        The previous pair is kept until the hub has accepted the new one (see confirm).
        """
        if os.path.exists(self.next_certificate):
            if os.path.exists(self.next_key):
                _link(self.key, self.last_key)
                _link(self.certificate, self.last_certificate)
                os.replace(self.next_key, self.key)
            os.replace(self.next_certificate, self.certificate)
            sync_folder(self.state_dir)

    def confirm(self) -> None:
        """The hub has accepted the present certificate: delete the previous one."""
        for path in (self.last_certificate, self.last_key):
            remove(path)

    def fall_back(self) -> bool:
        """The hub refuses the present certificate: swap it with the previous one, if that is still kept. Returns whether it was.

        If two renewals overlapped (on a connection that was thought to be closed, say), hub and host may have kept different ones. So
        neither is deleted, and they are tried in turn until one is accepted.
        """
        if not (os.path.exists(self.last_certificate) and os.path.exists(self.last_key)):
            return False
        _link(self.last_key, self.next_key)
        _link(self.last_certificate, self.next_certificate)
        self._settle()
        return True

    def _check_pair(self, certificate: str, key: str, ca: str) -> None:
        import ssl
        import tempfile

        with tempfile.TemporaryDirectory(prefix="ckp-enrol-", dir=self.state_dir) as scratch:
            trial = os.path.join(scratch, "cert.pem")
            atomic_write(trial, certificate, mode=0o600)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_cert_chain(trial, key)
                if ca:
                    context.load_verify_locations(cadata=ca)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise EnrolmentFailed(
                    f"the hub's certificate for this host can't be used: {error}",
                    resolution="remove the host in Compass and enrol it again (ckp-agent enrol --again)",
                    reason="CertificateUnusable",
                ) from None

    def forget(self) -> None:
        """Delete certificate, ticket and key: the next enrolment is that of a new host."""
        for path in (self.next_certificate, self.next_key, self.last_certificate, self.last_key, self.certificate, self.ticket, self.about, self.ca, self.key):
            remove(path)


def _link(path: str, name: str) -> None:
    """Make `name` a hard link to a file, replacing what had that name. It needs no space on a full disk."""
    temporary = name + ".new"
    remove(temporary)
    os.link(path, temporary)
    os.replace(temporary, name)


def _make_key(path: str) -> None:
    made = run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], timeout=60, what="generating the host's key")
    atomic_write(path, made.stdout, mode=0o600)


def _csr(key: str) -> str:
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64] or "host"
    return run(["openssl", "req", "-new", "-sha256", "-key", key, "-subj", f"/CN={name}"], timeout=60, what="making the certificate request").stdout
