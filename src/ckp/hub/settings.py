"""The hub's configuration: HUB_* environment variables, and files for keys and tokens."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from ckp.runtime.environment import EnvironmentSettings, Port

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _https(url: str) -> str:
    if not url.startswith("https://"):
        raise ValueError(f"{url!r} is not an https address: write it as https://HOST:PORT")
    return url.rstrip("/")


def _lease_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name for a Lease: write up to 253 of a-z, 0-9, '-' and '.', a letter or digit first and last")
    return text


class Settings(EnvironmentSettings):
    """The whole configuration of one hub process; `tls_cert` is HUB_TLS_CERT, and so on."""

    model_config = SettingsConfigDict(env_prefix="HUB_")

    tls_cert: Path = Path("/etc/ckp-hub/tls/tls.crt")
    tls_key: Path = Path("/etc/ckp-hub/tls/tls.key")
    server_ca: Path = Path("/etc/ckp-hub/tls/ca.crt")
    """What the hub's own certificate chains to; agents get it with their certificate."""
    host_ca_cert: Path = Path("/etc/ckp-hub/host-ca/tls.crt")
    host_ca_key: Path = Path("/etc/ckp-hub/host-ca/tls.key")
    compass_url: Annotated[str, AfterValidator(_https)] = "https://ckp-compass.ckp-system.svc:8081"
    compass_ca: Path = Path("/etc/ckp-hub/tls/ca.crt")
    compass_token_file: Path = Path("/var/run/secrets/ckp-compass/token")
    packages: Path = Path("/packages/repositories")
    """The repositories with the agent's packages (ckp.distribution.repositories); without that folder none are served."""
    site: Path = Path("/etc/ckp-hub/site/site.json")
    """What the site gives to machines that join (ckp.site.settings); without that file nothing."""
    identity: Annotated[str, AfterValidator(_lease_name)] = Field(default_factory=lambda: socket.gethostname().lower(), validate_default=True)
    """Unique among all live replicas; in a pod its host name is the pod's name."""
    bind: str = "0.0.0.0"
    enrolment_port: Port = 8443
    channel_port: Port = 9443
    probe_port: Port = 9090
    log_level: str = "INFO"
