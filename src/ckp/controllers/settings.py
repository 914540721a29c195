"""The controllers' configuration: CKP_* environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import SettingsConfigDict

from ckp.api.platform import DEFAULT_PATH
from ckp.runtime.environment import EnvironmentSettings, Port
from ckp.runtime.manager import PROBE_PORT


class Settings(EnvironmentSettings):
    """The configuration of one process of controllers; `addons_image` is CKP_ADDONS_IMAGE, and so on."""

    model_config = SettingsConfigDict(env_prefix="CKP_")

    addons_image: str
    """The image whose pods install addons."""
    backup_image: str = ""
    """The image whose pods make and restore backups of clusters; empty: there are none."""
    releases_file: Path = DEFAULT_PATH
    registry_login_file: Path = Path("/etc/ckp-registry/login.json")
    """How hosts log in to the registry (ckp.api.host_protocol.RegistryLogin); one that is not there: it asks for no password."""
    bind: str = "0.0.0.0"
    probe_port: Port = PROBE_PORT
    log_level: str = "INFO"
