"""The client of Compass' REST API, and the file with its address and token."""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from ckp.api.compass.base import Request, sentences
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.kits.files import atomic_write

TIMEOUT = 30.0
_PATH = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._-]*)+")
"""What names make of a path. A slash, `..`, `?` or `#` in one would ask for something else than it names."""

M = TypeVar("M", bound=BaseModel)


class Unreachable(CkpError):
    """Compass did not answer; later it may."""


class Unauthorized(CkpError):
    """Compass refuses the token."""


@dataclass(frozen=True)
class Config:
    """The contents of config.json.

    Args:
        token: empty while nobody is logged in.
        ca: PEM text, or the path of a PEM file (relative ones: beside config.json); empty trusts the system's CAs.
    """

    server: str
    token: str
    ca: str = ""
    domain: str = "default"
    project: str = "default"


def config_path() -> Path:
    """`CKP_CONFIG`, or ~/.config/ckp/config.json."""
    if given := os.environ.get("CKP_CONFIG"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ckp" / "config.json"


def write_config(config: Config, path: Path | None = None) -> Path:
    """Write the configuration, readable for its owner only, since it holds the token."""
    path = path or config_path()
    atomic_write(path, json.dumps(asdict(config), indent=2) + "\n", mode=0o600)
    return path


def read_config(path: Path | None = None) -> Config:
    """Read the configuration.

    Raises:
        NotFound: there is none.
        InvalidInput: it is not JSON, or a field is missing or wrong.
    """
    path = path or config_path()
    try:
        data = json.loads(path.read_text())
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NotFound(
            f"ckp does not know where Compass is: there is no {path}",
            resolution='`make up` writes it; or write {"server": "https://...", "ca": "...", "token": "..."} there (CKP_CONFIG names another file)',
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise InvalidInput(f"{path} is not a JSON object")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        print(f"warning: {path} holds a token and can be read by others: chmod 600 {path}", file=sys.stderr)
    known = {field.name for field in fields(Config)}
    values = {name: value for name, value in data.items() if name in known and isinstance(value, str)}
    if not values.get("server"):
        raise InvalidInput(f"{path}: server is missing")
    values.setdefault("token", "")
    if not values["server"].startswith("https://"):
        raise InvalidInput(f"{path}: server {values['server']!r} is not an https address", resolution="the token must not travel in the clear")
    try:
        httpx.URL(values["server"])
    except httpx.InvalidURL as error:
        raise InvalidInput(f"{path}: server {values['server']!r} is not an address: {error}") from None
    if not re.fullmatch(r"[\x21-\x7e]*", values["token"]):
        raise InvalidInput(f"{path}: token holds characters that no token has", resolution="copy it again, as one line")
    if (ca := values.get("ca", "")) and "-----BEGIN" not in ca:
        values["ca"] = str(path.parent / ca)
    return Config(**values)


def read(view: type[M], data: Any) -> M:
    """An answer as its view.

    Raises:
        CkpError: it does not have the view's fields: it is of another version of Compass.
    """
    try:
        return view.model_validate(data)
    except ValidationError as error:
        raise CkpError(
            f"Compass answered with a {view.__name__} that this ckp cannot read",
            details="\n".join(sentences(error.errors())),
            resolution="use the ckp of the same version as Compass (ckp --version); -o json shows the answer as it is",
        ) from None


class Session:
    """Calls Compass.

    Args:
        transport: for tests; None opens real connections.
        of_file: the configuration as the file has it, where `config` names another project.
    """

    def __init__(self, config: Config, *, transport: httpx.BaseTransport | None = None, of_file: Config | None = None) -> None:
        self.config = config
        self.config_of_file = of_file or config
        self._http = httpx.Client(
            base_url=config.server,
            headers={"User-Agent": "ckp"} | ({"Authorization": f"Bearer {config.token}"} if config.token else {}),
            verify=_trust(config.ca) if transport is None else True,
            timeout=TIMEOUT,
            trust_env=False,
            transport=transport,
        )

    @property
    def where(self) -> str:
        """`domain/project`, for messages."""
        return f"{self.config.domain}/{self.config.project}"

    def get(self, path: str, **params: str) -> Any:
        """The JSON of a GET below the project, or of the path itself if it begins with /api/."""
        return self.call("GET", path, params=params)

    def fetch(self, view: type[M], path: str, **params: str) -> M:
        """A GET, read as a view."""
        return read(view, self.get(path, **params))

    def fetch_items(self, view: type[M], path: str, **params: str) -> list[M]:
        """A GET of a list, each item read as a view."""
        return [read(view, item) for item in self.get(path, **params)["items"]]

    def call(self, method: str, path: str, *, body: Request | dict[str, Any] | None = None, params: dict[str, str] | None = None) -> Any:
        """One request. The answer is data if it is JSON, else text.

        Raises:
            Unreachable: no connection, or Compass cannot answer now.
            NotFound, Conflict, InvalidInput, Unauthorized, CkpError: as Compass answers.
        """
        full = path if path.startswith("/api/") else f"/api/v1/domains/{self.config.domain}/projects/{self.config.project}{path}"
        if not _PATH.fullmatch(full):
            raise InvalidInput(
                f"{path!r} holds a name that nothing in Compass can have",
                resolution="names have letters, digits, hyphens and dots, and begin with a letter or a digit",
            )
        try:
            response = self._http.request(method, full, json=body.body() if isinstance(body, Request) else body, params=params)
        except httpx.HTTPError as error:
            raise self._unreached(error) from None
        if not response.is_success:
            raise self._refused(response)
        if not response.content or "json" not in response.headers.get("content-type", ""):
            return response.text
        try:
            return response.json()
        except ValueError:
            raise self._not_compass(response) from None

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _unreached(self, error: Exception) -> CkpError:
        server = self.config.server
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(f"Compass at {server} did not answer within {TIMEOUT:.0f} s", resolution="try again; check that its pod is Ready")
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Unreachable(
                f"the certificate of Compass at {server} is not trusted",
                details=str(error),
                resolution=f"put the CA that it chains to into `ca` of {config_path()}",
            )
        return Unreachable(f"Compass at {server} cannot be reached: {error}", resolution=f"is it up (ckp lab status)? Is `server` in {config_path()} right?")

    def _refused(self, response: httpx.Response) -> CkpError:
        try:
            error = response.json()["error"]
            brief, details, resolution = str(error["message"]), str(error.get("details", "")), str(error.get("resolution", ""))
        except (ValueError, KeyError, TypeError):
            return self._not_compass(response)
        if response.status_code == 401:
            if response.request.url.path.endswith(("/sessions", "/me/password")):  # a password was wrong, and no token
                return Unauthorized(brief, resolution=resolution)
            if not self.config.token:
                return Unauthorized("nobody is logged in", resolution="ckp login NAME, or NAME@DOMAIN for people of a domain")
            return Unauthorized(f"Compass refuses the token: {brief}", resolution=f"log in again (ckp login), or put a valid token into {config_path()}")
        kind = {404: NotFound, 409: Conflict, 400: InvalidInput, 422: InvalidInput, 502: Unreachable, 503: Unreachable}.get(response.status_code, CkpError)
        return kind(brief, details=details, resolution=resolution)

    def _not_compass(self, response: httpx.Response) -> CkpError:
        return CkpError(
            f"{self.config.server} answered {response.status_code}, but not as Compass does",
            details=response.text[:500],
            resolution=f"is `server` in {config_path()} right?",
        )


def _trust(ca: str) -> ssl.SSLContext:
    try:
        if "-----BEGIN" in ca:
            return ssl.create_default_context(cadata=ca)
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:
        raise InvalidInput(f"the CA {ca[:80]!r} cannot be loaded: {error}", resolution=f"fix `ca` in {config_path()}") from None
