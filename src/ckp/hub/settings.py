"""What the hub is told from outside: environment variables, and files for keys and tokens."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.errors import InvalidInput

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class Settings:
    """The whole configuration of one hub process."""

    tls_cert: Path = Path("/etc/ckp-hub/tls/tls.crt")
    tls_key: Path = Path("/etc/ckp-hub/tls/tls.key")
    server_ca: Path = Path("/etc/ckp-hub/tls/ca.crt")
    """What the hub's own certificate chains to; agents get it with their certificate."""
    host_ca_cert: Path = Path("/etc/ckp-hub/host-ca/tls.crt")
    host_ca_key: Path = Path("/etc/ckp-hub/host-ca/tls.key")
    compass_url: str = "https://ckp-compass.ckp-system.svc:8081"
    compass_ca: Path = Path("/etc/ckp-hub/tls/ca.crt")
    compass_token: Path = Path("/var/run/secrets/ckp-compass/token")
    identity: str = ""
    """Among all replicas that live; in a pod its host name is the pod's name."""
    bind: str = "0.0.0.0"
    enrolment_port: int = 8443
    channel_port: int = 9443
    probe_port: int = 9090
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read HUB_*; InvalidInput names the variable that is wrong."""
        default = cls()

        def path(name: str, fallback: Path) -> Path:
            return Path(env.get(name) or fallback)

        def port(name: str, fallback: int) -> int:
            text = env.get(name, str(fallback))
            if not text.isdigit() or not 0 <= int(text) <= 65535:
                raise InvalidInput(f"{name}: {text!r} is not a port number")
            return int(text)

        url = env.get("HUB_COMPASS_URL", default.compass_url).rstrip("/")
        if not url.startswith("https://"):
            raise InvalidInput(f"HUB_COMPASS_URL: {url!r} is not an https address")
        identity = env.get("HUB_IDENTITY") or socket.gethostname().lower()
        if not _NAME.fullmatch(identity):
            raise InvalidInput(f"HUB_IDENTITY: {identity!r} is no name for a Lease: up to 253 of a-z, 0-9, '-' and '.', a letter or digit first and last")
        return cls(
            identity=identity,
            tls_cert=path("HUB_TLS_CERT", default.tls_cert),
            tls_key=path("HUB_TLS_KEY", default.tls_key),
            server_ca=path("HUB_SERVER_CA", default.server_ca),
            host_ca_cert=path("HUB_HOST_CA_CERT", default.host_ca_cert),
            host_ca_key=path("HUB_HOST_CA_KEY", default.host_ca_key),
            compass_url=url,
            compass_ca=path("HUB_COMPASS_CA", default.compass_ca),
            compass_token=path("HUB_COMPASS_TOKEN_FILE", default.compass_token),
            bind=env.get("HUB_BIND", default.bind),
            enrolment_port=port("HUB_ENROLMENT_PORT", default.enrolment_port),
            channel_port=port("HUB_CHANNEL_PORT", default.channel_port),
            probe_port=port("HUB_PROBE_PORT", default.probe_port),
            log_level=env.get("HUB_LOG_LEVEL", default.log_level),
        )
