"""The registry that holds images and bundles: distribution, built from source, over TLS with a CA of its own."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ckp.clients.oci.registry import Registry
from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write, exclusive
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until

TEN_YEARS = timedelta(days=3650)


@dataclass(frozen=True)
class RegistryServer:
    """A registry of ours on this machine.

    Args:
        program: the built `registry`.
        listen: address it listens on.
        name: the host name that clients use; its certificate is for this name and for `listen`.
        state: where its certificates, pid file and log lie; by default the one registry of this machine's lab.
        content: where its blobs lie; by default in the cache, since they can be pushed again. Two registries may share it: it is content-addressed.
    """

    program: Path
    listen: str
    name: str
    port: int = 5000
    state: Path | None = None
    content: Path | None = None

    @property
    def folder(self) -> Path:
        """Where its state lies."""
        return self.state or paths.state() / "registry"

    @property
    def ca(self) -> Path:
        """The CA that its clients trust."""
        return self.folder / "ca.pem"

    @property
    def address(self) -> str:
        """`host:port` as images name it."""
        return f"{self.name}:{self.port}"

    @property
    def _daemon(self) -> Daemon:
        return Daemon("registry", self.folder / "registry.pid", self.folder / "registry.log")

    def start(self) -> Registry:
        """Start it unless it runs, wait until it answers, and return a client."""
        with exclusive(self.folder / ".lock", what="starting the registry", timeout=60):
            self._certificates()
            config = {
                "version": 0.1,
                "log": {"level": "warn", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(self.content or paths.cache() / "registry")}, "delete": {"enabled": True}},
                "http": {
                    "addr": f"{self.listen}:{self.port}",
                    "tls": {"certificate": str(self.folder / "tls.pem"), "key": str(self.folder / "tls.key"), "minimumtls": "tls1.2"},
                },
            }
            atomic_write(self.folder / "config.yml", json.dumps(config))  # JSON is YAML
            self._daemon.start([self.program, "serve", self.folder / "config.yml"], env={"OTEL_TRACES_EXPORTER": "none"})
        client = self.client()
        try:
            wait_until(client.alive, what=f"the registry at {self.listen}:{self.port} answers", timeout=30, every=0.2, reason=self._daemon.tail)
        except CkpError:
            self.stop()
            raise
        return client

    def client(self) -> Registry:
        """A client by the address it listens on (this machine need not resolve its name)."""
        return Registry(f"{self.listen}:{self.port}", self.ca)

    def running(self) -> bool:
        """Whether its process runs."""
        return self._daemon.pid() is not None

    def stop(self) -> None:
        """Stop it if it runs."""
        self._daemon.stop()

    def _certificates(self) -> None:
        if (self.folder / "tls.pem").exists():
            return
        ca_key, ca = _issue("CKP lab registry CA", None, None, [])
        names: list[x509.GeneralName] = [x509.DNSName(self.name), x509.IPAddress(ipaddress.ip_address(self.listen))]
        key, certificate = _issue(self.name, ca_key, ca, names)
        atomic_write(self.ca, ca.public_bytes(serialization.Encoding.PEM))
        atomic_write(self.folder / "tls.key", _pem(key), mode=0o600)
        # Last: its presence says that all are there. The CA's key is dropped: it has signed all that it ever will.
        atomic_write(self.folder / "tls.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _issue(
    name: str, issuer_key: ec.EllipticCurvePrivateKey | None, issuer: x509.Certificate | None, names: list[x509.GeneralName]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """With the extensions that a strict client asks for (RFC 5280; Python from 3.13 on): key usage and the identifiers of both keys."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, issuer is None, issuer is None, False, False)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + TEN_YEARS)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer_key or key).public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return key, builder.sign(issuer_key or key, hashes.SHA256())
