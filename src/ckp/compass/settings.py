"""What Compass is told from outside: environment variables, and files for secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from ckp.kits.errors import InvalidInput

MIN_TOKEN_CHARACTERS = 20


@dataclass(frozen=True)
class Reserved:
    """A network that no cluster may use, and what it is."""

    name: str
    network: IPv4Network


@dataclass(frozen=True)
class Settings:
    """The whole configuration of one Compass process."""

    database: Path
    admin_token_file: Path
    releases_file: Path = Path("/etc/ckp/releases.json")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    internal_tls_cert: Path | None = None
    internal_tls_key: Path | None = None
    bind: str = "0.0.0.0"
    port: int = 8080
    internal_port: int = 8081
    probe_port: int = 9090
    reserved: tuple[Reserved, ...] = ()
    hub_account: str = "system:serviceaccount:ckp-system:ckp-hub"
    audience: str = "ckp-compass"
    own_account: str = ""
    """`namespace/name` of Compass' own ServiceAccount; with `tenant_role`, each new tenant namespace gets a RoleBinding for it."""
    tenant_role: str = ""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read COMPASS_*; InvalidInput names the variable that is missing or wrong."""
        return cls(
            database=Path(env.get("COMPASS_DATABASE", "/var/lib/compass/compass.db")),
            admin_token_file=Path(env.get("COMPASS_ADMIN_TOKEN_FILE", "/etc/compass/token/token")),
            releases_file=Path(env.get("COMPASS_RELEASES_FILE", "/etc/ckp/releases.json")),
            tls_cert=_path(env, "COMPASS_TLS_CERT"),
            tls_key=_path(env, "COMPASS_TLS_KEY"),
            internal_tls_cert=_path(env, "COMPASS_INTERNAL_TLS_CERT") or _path(env, "COMPASS_TLS_CERT"),
            internal_tls_key=_path(env, "COMPASS_INTERNAL_TLS_KEY") or _path(env, "COMPASS_TLS_KEY"),
            bind=env.get("COMPASS_BIND", "0.0.0.0"),
            port=_port(env, "COMPASS_PORT", 8080),
            internal_port=_port(env, "COMPASS_INTERNAL_PORT", 8081),
            probe_port=_port(env, "COMPASS_PROBE_PORT", 9090),
            reserved=parse_reserved(env.get("COMPASS_RESERVED_CIDRS", "")),
            hub_account=env.get("COMPASS_HUB_ACCOUNT", "system:serviceaccount:ckp-system:ckp-hub"),
            audience=env.get("COMPASS_AUDIENCE", "ckp-compass"),
            own_account=env.get("COMPASS_OWN_ACCOUNT", ""),
            tenant_role=env.get("COMPASS_TENANT_ROLE", ""),
            log_level=env.get("COMPASS_LOG_LEVEL", "INFO"),
        )


def parse_reserved(text: str) -> tuple[Reserved, ...]:
    """`hosts=10.88.0.0/24, management pods=10.244.0.0/16` as networks with their names."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, cidr = part.partition("=")
        try:
            found.append(Reserved(name.strip(), IPv4Network(cidr.strip())))
        except ValueError as error:
            raise InvalidInput(f"COMPASS_RESERVED_CIDRS: {part!r} is not name=cidr: {error if equals else 'there is no ='}") from None
    return tuple(found)


def read_admin_token(path: Path) -> str:
    """The administrator's token from its file; one that is missing or could be guessed stops the start."""
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise InvalidInput(
            f"the administrator's token could not be read from {path}: {error.strerror}",
            resolution="mount the secret there, or set COMPASS_ADMIN_TOKEN_FILE",
        ) from None
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise InvalidInput(
            f"the administrator's token in {path} has {len(token)} characters, and {MIN_TOKEN_CHARACTERS} are the least",
            resolution="write a random one: head -c 32 /dev/urandom | base64",
        )
    return token


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(env[name]) if env.get(name) else None


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise InvalidInput(f"{name}: {text!r} is not a port number")
    return int(text)
