"""Compass' configuration: COMPASS_* environment variables, and files for secrets."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from ckp.api.names import COMPASS_AUDIENCE, SITE_ACCOUNT
from ckp.kits.errors import InvalidInput
from ckp.runtime.environment import EnvironmentSettings, Port

MIN_TOKEN_CHARACTERS = 20
Connections = Annotated[int, Field(ge=2, le=100)]
Seconds = Annotated[float, Field(ge=0, le=60)]


@dataclass(frozen=True)
class Reserved:
    """A network that no cluster may use, and what it is."""

    name: str
    network: IPv4Network


def parse_reserved(text: str) -> tuple[Reserved, ...]:
    """`hosts=10.88.0.0/24, management pods=10.244.0.0/16` as networks with their names. ValueError if it is something else."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, cidr = part.partition("=")
        try:
            found.append(Reserved(name.strip(), IPv4Network(cidr.strip())))
        except ValueError as error:
            raise ValueError(f"{part!r} is not name=cidr: {error if equals else 'there is no ='}") from None
    return tuple(found)


def _reserved(value: object) -> object:
    return parse_reserved(value) if isinstance(value, str) else value


class Settings(EnvironmentSettings):
    """The whole configuration of one Compass process; `tls_cert` is COMPASS_TLS_CERT, and so on."""

    model_config = SettingsConfigDict(env_prefix="COMPASS_")

    database: Path = Path("/var/lib/compass/compass.db")
    """The SQLite file, where no PostgreSQL is named."""
    database_url_file: Path | None = None
    """File with PostgreSQL's URL (ckp.rules.postgresql); its password is read from nowhere else."""
    database_ca_file: Path | None = None
    """CA (PEM) of PostgreSQL's certificate; one that is not there counts as not set."""
    database_connections: Connections = 8
    """The most connections that this process has to PostgreSQL at a time for its requests."""
    drain_seconds: Seconds = 0
    """For how long it goes on answering after it was told to stop: until all who send requests know that it is not ready any more."""
    admin_token_file: Path = Path("/etc/compass/token/token")
    releases_file: Path = Path("/etc/ckp/releases.json")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    internal_tls_cert: Path | None = None
    internal_tls_key: Path | None = None
    """Those of the internal port; without them the other port's are used."""
    bind: str = "0.0.0.0"
    port: Port = 8080
    internal_port: Port = 8081
    probe_port: Port = 9090
    reserved: Annotated[tuple[Reserved, ...], NoDecode, BeforeValidator(_reserved)] = Field(default=(), validation_alias="COMPASS_RESERVED_CIDRS")
    hub_account: str = "system:serviceaccount:ckp-system:ckp-hub"
    site_account: str = f"system:serviceaccount:ckp-system:{SITE_ACCOUNT}"
    """Whose token `ckp site apply` uses."""
    audience: str = COMPASS_AUDIENCE
    hub_address: str = ""
    """By which hosts reach the hub; without it the line by which they enrol is not known."""
    site_ca: Path = Path("/etc/compass/tls/ca.crt")
    """What the hub's certificate chains to."""
    own_account: str = ""
    """`namespace/name` of Compass' own ServiceAccount; with `tenant_role`, each new tenant namespace gets a RoleBinding for it."""
    tenant_role: str = ""
    log_level: str = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _one_certificate_for_both_ports(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = {f"internal_{name}": values[name] for name in ("tls_cert", "tls_key") if name in values}
        return given | values


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
