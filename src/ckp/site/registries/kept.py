"""What this machine keeps of a site's own registry: the CA and the server's certificate, the password for pushing and its hash.

The CA's key never leaves it. They are part of the site's state: without the CA's key, hosts would have to be given another CA once the certificate ends.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from ckp.distribution.registries import htpasswd
from ckp.distribution.registries.authority import TEN_YEARS, Authority, why_renew
from ckp.kits.errors import InvalidInput, NotFound
from ckp.kits.files import atomic_write

PUSH_USER = "ckp"
"""The only user of the registry."""
LEAF_LIFETIME = timedelta(days=5 * 365)
"""Only `prepare` renews it, in its last half year."""
CA_LIFETIME = 2 * TEN_YEARS

Say = Callable[[str], None]


@dataclass(frozen=True)
class KeptRegistry:
    """The files, the same for all hosts that have the registry.

    Args:
        name: the host name that hosts and images know it by.
        addresses: IPv4 addresses of the hosts that have it, sorted.
        virtual: an address that moves between these hosts; "" for none.
        now: the current time.
    """

    folder: Path
    name: str
    addresses: tuple[str, ...]
    virtual: str
    push_port: int
    now: Callable[[], datetime]

    @property
    def ca(self) -> Path:
        """The CA of its certificate (PEM)."""
        return self.folder / "ca.pem"

    @property
    def credentials(self) -> Path:
        """The password for pushing, in the format of docker's config.json (0600)."""
        return self.folder / "credentials.json"

    @property
    def users(self) -> Path:
        """Its bcrypt hash (0600)."""
        return self.folder / "htpasswd"

    def prepare(self, say: Say) -> None:
        """CA, certificate, password and hash; each is made if it is missing, and the certificate also when it must be renewed.

        Raises:
            NotFound: the certificate must be renewed, and the CA's key is not there.
            InvalidInput: a file is not what CKP wrote.
        """
        self.folder.chmod(0o700)
        self._ensure_authority(say)
        if why := self.why_issue():
            self.require_key(why)
            authority = Authority.load(self.ca.read_bytes(), (self.folder / "ca.key").read_bytes())
            leaf = authority.issue(self._names(), now=self.now(), lifetime=LEAF_LIFETIME)
            atomic_write(self.tls, leaf.certificate + leaf.key, mode=0o600)  # one file: both are new, or neither is
            say(f"registry: certificate issued ({why})")
        self._ensure_password(say)

    def why_issue(self) -> str:
        """Why the server's certificate must be issued, by the CA that is there; "" if it need not."""
        if not self.tls.exists():
            return "there is none"
        return why_renew(self.tls.read_bytes(), x509.load_pem_x509_certificate(self.ca.read_bytes()), self._names(), self.now())

    @property
    def tls(self) -> Path:
        """The server's certificate with its key."""
        return self.folder / "tls.pem"

    def _names(self) -> list[str]:
        """Of the certificate, which is the same on all hosts."""
        return [self.name, *self.addresses, *([self.virtual] if self.virtual else [])]

    def require_key(self, why: str) -> None:
        key = self.folder / "ca.key"
        if why and not key.exists():
            raise NotFound(
                f"the registry's certificate must be issued ({why}), and {key} with the key of its CA is missing",
                resolution="restore it from a backup of the site's state",
            )

    def _ensure_authority(self, say: Say) -> None:
        if not self.ca.exists():
            made = Authority.create(f"CKP registry CA of {self.name}", now=self.now(), lifetime=CA_LIFETIME)
            atomic_write(self.folder / "ca.key", made.key_pem, mode=0o600)
            atomic_write(self.ca, made.pem)  # last: its presence says that both are there
            say(f"registry: CA made; its key is in {self.folder}")

    def _ensure_password(self, say: Say) -> None:
        file, users = self.credentials, self.users
        password = self._password(file)
        if not password:
            password = secrets.token_urlsafe(32)
            say("registry: password for pushing made")
        login = base64.b64encode(f"{PUSH_USER}:{password}".encode()).decode()
        # By address: another address needs another entry.
        content = json.dumps({"auths": {f"{address}:{self.push_port}": {"auth": login} for address in self.addresses}})
        if not file.exists() or file.read_text() != content:
            atomic_write(file, content, mode=0o600)
        if not users.exists() or not htpasswd.matches(users.read_text(), PUSH_USER, password):
            atomic_write(users, htpasswd.entry(PUSH_USER, password), mode=0o600)

    def _password(self, file: Path) -> str:
        """The one in the file; "" if there is no file."""
        if not file.exists():
            return ""
        try:
            [login] = {entry["auth"] for entry in json.loads(file.read_bytes())["auths"].values()}
            user, _, password = base64.b64decode(login, validate=True).decode().partition(":")
        except (ValueError, KeyError, TypeError, AttributeError):
            user = password = ""
        if user != PUSH_USER or not password:
            raise InvalidInput(f"{file} is not the file of the registry's password that CKP wrote", resolution="restore it, or delete it: another is made")
        return password
