"""A registry that was there before the site. CKP pushes to it below a prefix, and deletes there only what it has pushed (ADR 31).

Two users: the one who pushes is in a file of this machine, and nowhere else. The one whom hosts pull as is on all hosts, in files for root only,
and in a Secret for the controllers, which hand it to workers: it need be able to read only, and `ckp site check` says if it can do more.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckp.clients.oci.http import Credentials
from ckp.clients.oci.registry import Registry
from ckp.distribution.bundles import PREFIX
from ckp.distribution.registries.prune import prune
from ckp.hostkit.locations import REGISTRY_LOGIN
from ckp.kits.errors import CkpError, InvalidInput
from ckp.site.hosts.files import HostFile, bring, differing, digests
from ckp.site.inventory import OutsideRegistry, SiteHost
from ckp.site.registries.record import PushRecord
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.named_files import read_ca

SECRET = "ckp-registry-login"
"""Of the management cluster, in ckp-system: what workers log in with (deploy/40-controllers.yaml)."""
RECORD = "pushed.json"
NONE = f"{PREFIX}/none"
"""A repository that is asked about: nothing is ever pushed there."""

Say = Callable[[str], None]


def connect(place: OutsideRegistry, credentials: Path | None) -> Registry:
    """A client, with a file of credentials or None."""
    return Registry(place.host, place.ca, credentials=credentials, prefix=place.prefix)


def of_spec(spec: SiteSpec) -> OutsideRegistry | None:
    """The registry that the site's file names; None if the site has one of its own.

    Raises:
        InvalidInput: a file can't be read, is open to others, or does not hold what it has to. No secret is quoted.
    """
    found = spec.registry.existing
    if found is None:
        return None
    if found.ca_file is not None:
        read_ca(found.ca_file, _where(spec, "caFile"))
    if found.credentials_file is not None:
        _basic(found.credentials_file, found.address, _where(spec, "credentialsFile"))
    pull = found.pull_credentials_file
    login = _basic(pull, found.address, _where(spec, "pullCredentialsFile")) if pull is not None else ""
    return OutsideRegistry(found.address, found.prefix or "", found.ca_file, found.credentials_file, login)


def _where(spec: SiteSpec, key: str) -> str:
    return f"{spec.file or 'site'}:{spec.line('registry', 'existing', key)}: registry.existing.{key}"


def _basic(file: Path, address: str, where: str) -> str:
    """What a file has for the registry, as base64 of `user:password`."""
    try:
        basic = Credentials(file, address).basic
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.brief}", resolution=error.resolution) from None
    if not basic:
        raise InvalidInput(f"{where}: {file} has no entry for {address}", resolution=f"docker login {address}, or podman login, writes one")
    return basic.removeprefix("Basic ")


@dataclass(frozen=True)
class ExistingRegistry:
    """It as publishing and installing need it (ckp.site.registries.hosted.SiteRegistryServer).

    Args:
        state: the folder of this machine with the record of what was pushed.
    """

    place: OutsideRegistry
    state: Path

    @property
    def address(self) -> str:
        """`host:port`, and the prefix if there is one, as hosts and images name it."""
        return self.place.address

    @property
    def endpoint(self) -> str:
        """The same: pushes go there, too."""
        return self.address

    @property
    def ca(self) -> Path | None:
        """The CA of its certificate (PEM); None for those that the system trusts."""
        return self.place.ca

    @property
    def credentials(self) -> Path | None:
        """The user who pushes; None if everybody may."""
        return self.place.credentials

    @property
    def record(self) -> PushRecord:
        """What the site has pushed."""
        return PushRecord(self.state / RECORD)

    def client(self) -> Registry:
        """A client that may push."""
        return connect(self.place, self.place.credentials)

    def ensure(self, say: Say) -> Registry:
        """A client that may push, to a registry that answers and lets it. CkpError otherwise."""
        client = self.client()
        if not client.may_push(NONE):
            client.close()
            raise CkpError(
                f"the registry {self.place.host} does not let this machine push to {self.address}/{PREFIX}",
                resolution="let the user of registry.existing.credentialsFile push there, or write another prefix",
            )
        say(f"the registry {self.place.host} takes pushes below {self.address}/{PREFIX}")
        return client

    def silent(self) -> list[str]:
        """Its address, if it does not answer now by TLS with a certificate that is trusted."""
        with closing(self.client()) as client:
            return [] if client.alive() else [self.place.host]

    @contextmanager
    def recorded(self, client: Registry, release: str, wanted: Mapping[str, str]) -> Iterator[bool]:
        """A release is pushed within the block; the block gets whether tags may be replaced: those of others stay.

        Args:
            wanted: repository -> tag.
        """
        foreign = self.record.begin(release, wanted, client.digest)
        yield not foreign
        self.record.end(release, client.digest)

    def remove_content(self, client: Registry, release: str, say: Say) -> None:
        """Delete what the site has pushed of a release and nothing else needs. Where the registry lets nobody delete, it stays, and `say` gets that.

        Raises:
            CkpError: the registry does not answer; the same again goes on.
        """
        selection = self.record.removable(release, client.digest)
        try:
            done = prune(client, selection, say, yes=True)
            say(f"{release}: {len(done)} removed from {self.address}")
        except CkpError as error:
            if not client.alive():
                raise
            reason = error.details.splitlines()[0] if error.details else error.brief
            say(f"{release}: its content stays at {self.address}, which does not let it be deleted: {reason}")
        self.record.forget(release)


# -- what hosts log in with


def login_document(place: OutsideRegistry) -> str:
    """How hosts log in, as the host tool and the controllers read it (ckp.api.host_protocol.RegistryLogin); empty if everybody may pull. A secret."""
    return json.dumps({"registry": place.host, "basic": place.login}) + "\n" if place.login else ""


def docker_config(host: str, login: str) -> bytes:
    """A login (base64 of `user:password`) in the format of docker's config.json."""
    return json.dumps({"auths": {host: {"auth": login}}}).encode()


def login_secret(place: OutsideRegistry) -> str:
    """The Secret's manifest, as JSON. It goes to kubectl's standard input, and into no file."""
    data = {"login.json": base64.b64encode(login_document(place).encode()).decode()}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": "ckp-system"}, "data": data})


def bring_login(host: SiteHost, place: OutsideRegistry | None) -> None:
    """Let a host have the login, for root only; none any longer if everybody may pull. A site with a registry of its own never has one."""
    if place is None:
        return
    text = login_document(place)
    there = HostFile(REGISTRY_LOGIN, text.encode(), mode=0o600)
    if text and differing(host, [there]):
        bring(host, there)
    elif not text and REGISTRY_LOGIN in digests(host, [REGISTRY_LOGIN]):
        host.run(["rm", "-f", "--", REGISTRY_LOGIN], timeout=30)
