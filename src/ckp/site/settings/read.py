"""The settings of a site's file, with what the files hold that it names."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ckp.clients.signing.openpgp import KEYRING, SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.site.settings.model import HostSettings
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.named_files import read_bytes
from ckp.verify.keyrings import certificates, read_keyring

ALWAYS_DIRECT = ("localhost", "127.0.0.0/8", ".svc", ".cluster.local")
"""As the host tool has them (ckp.hostkit.proxies); here for programs that read only what they are given."""
MOST = 256 << 10
"""Bytes of a keyring, and of all CAs: a ConfigMap takes 1 MiB."""
SOON = timedelta(days=30)
_ARMOUR = re.compile(r"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*\n(?:[^\n]+: [^\n]*\n)*\s*\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)


def settings_of(spec: SiteSpec, keyring: Path | None = None) -> HostSettings:
    """What the site gives to its hosts.

    Args:
        keyring: the keys to choose from instead of this machine's own, where the site's file names none (`--keyring`).

    Raises:
        InvalidInput: a file that the site names can't be read, or does not hold what it should; or two keyrings are named.
    """
    network = spec.network
    proxy = network.proxy
    return HostSettings(
        keyring=trusted_keys(spec, keyring),
        authorities=tuple(dict.fromkeys(pem for number in range(len(network.ca_files)) for pem in map(_pem, authorities(spec, number)))),
        http_proxy=_with_port(proxy.http) if proxy else "",
        https_proxy=_with_port(proxy.https) if proxy else "",
        no_proxy=exceptions(spec) if proxy else (),
        nameservers=tuple(map(str, network.dns)),
        time_servers=tuple(network.time_servers),
    )


def exceptions(spec: SiteSpec) -> tuple[str, ...]:
    """What is reached without the proxy: all that is the site's own, and what its file adds. The one place that says so."""
    addresses, registry, proxy = spec.addresses, spec.registry, spec.network.proxy
    own = [
        *ALWAYS_DIRECT,
        *(str(network) for network in addresses.reserved.values()),
        *([str(addresses.api.virtual_address)] if addresses.api.virtual_address else []),
        *(str(each.address) for each in (addresses.compass, addresses.hub)),
        *(addresses.api.names + addresses.compass.names + addresses.hub.names),
        *([registry.own.name] if registry.own else []),
        *([registry.existing.address.partition(":")[0]] if registry.existing else []),
        *(host.name for host in spec.management.hosts or ()),
    ]
    return tuple(dict.fromkeys([*own, *(proxy.no_proxy if proxy else ())]))


def proxy_environment(spec: SiteSpec) -> dict[str, str]:
    """The site's proxy as programs read it from their environment; empty without one."""
    proxy = spec.network.proxy
    if proxy is None:
        return {}
    return {"HTTPS_PROXY": _with_port(proxy.https), "HTTP_PROXY": _with_port(proxy.http), "NO_PROXY": ",".join(exceptions(spec))}


def _with_port(url: str | None) -> str:
    """A proxy's URL with its port, which programs take for different ones where it is missing."""
    if not url:
        return ""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 80}"


# -- private CAs


def authorities(spec: SiteSpec, number: int) -> list[x509.Certificate]:
    """The certificates of one of `network.caFiles`.

    Raises:
        InvalidInput: it can't be read, holds no certificate, too many, or one that is no CA's.
    """
    file = spec.network.ca_files[number]
    where = _where(spec, ("network", "caFiles", number), f"network.caFiles[{number}]")
    data = read_bytes(file, where, most=MOST)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise InvalidInput(f"{where}: {file} is not a PEM file with certificates", resolution="name the CA's certificate in PEM") from None
    for each in found:
        if not _is_authority(each):
            raise InvalidInput(
                f"{where}: {file} holds a certificate that is no CA's: {each.subject.rfc4514_string()}",
                resolution="name the CA that has issued it: trusting a server's own certificate ends when that is renewed",
            )
    return found


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return certificate.issuer == certificate.subject  # of version 1


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def lifetimes(spec: SiteSpec, now: datetime) -> Iterator[tuple[bool, str]]:
    """CAs that have ended, do not count yet, or end soon: whether it is an error, and what is so. Raises as `authorities`."""
    for number, file in enumerate(spec.network.ca_files):
        for each in authorities(spec, number):
            begin, end, name = each.not_valid_before_utc, each.not_valid_after_utc, each.subject.rfc4514_string()
            if end <= now:
                yield True, f"{file}: the CA {name} has expired on {end:%Y-%m-%d}"
            elif begin > now:
                yield True, f"{file}: the CA {name} is valid from {begin:%Y-%m-%d %H:%M} UTC only"
            elif end - now < SOON:
                yield False, f"{file}: the CA {name} expires on {end:%Y-%m-%d}"


# -- trusted keys


def trusted_keys(spec: SiteSpec, keyring: Path | None = None) -> bytes:
    """The keys that the site names, as a binary keyring; empty if it names none.

    Raises:
        InvalidInput: as of `settings_of`, or one of `trust.fingerprints` is not in the keyring.
    """
    trust = spec.trust
    if not trust.keyring_file and not trust.fingerprints:
        return b""
    if trust.keyring_file and keyring:
        raise InvalidInput(
            f"{_where(spec, ('trust', 'keyringFile'), 'trust.keyringFile')}: the site names its keyring, and --keyring names another one",
            resolution="leave --keyring out",
        )
    file = trust.keyring_file or keyring or paths.keys() / KEYRING
    where = _where(spec, ("trust", "keyringFile") if trust.keyring_file else ("trust", "fingerprints"), "trust")
    found = _certificates(_dearmoured(read_bytes(file, where, most=MOST), file), file, where)
    for number, fingerprint in enumerate(trust.fingerprints):
        if fingerprint.upper() not in found:
            raise InvalidInput(
                f"{_where(spec, ('trust', 'fingerprints', number), f'trust.fingerprints[{number}]')}: {file} has no key {fingerprint}",
                details="it has:\n" + "\n".join(found),
                resolution="correct the fingerprint (that of the primary key), or name a keyring that has it",
            )
    chosen = [fingerprint.upper() for fingerprint in trust.fingerprints] or list(found)
    return b"".join(found[fingerprint] for fingerprint in found if fingerprint in chosen)


def fingerprints(keyring: bytes) -> list[str]:
    """Of the primary keys of a binary keyring, in upper-case hex."""
    return list(_certificates(keyring, Path("the site's keyring"), "trust")) if keyring else []


def require_signer(settings: HostSettings) -> None:
    """What this machine builds is signed by a key that the site trusts, or is refused before anything is built.

    Raises:
        InvalidInput: it is not.
    """
    if not settings.keyring:
        return
    trusted = fingerprints(settings.keyring)
    if not (paths.keys() / KEYRING).exists():
        own = ""
    elif (own := SigningKey(paths.keys()).fingerprint) in trusted:
        return
    raise InvalidInput(
        f"this machine signs what it builds with {own}, which the site does not trust"
        if own
        else "this machine has no signing key yet, and the site names keys",
        details="the site trusts:\n" + "\n".join(trusted),
        resolution="name a release that one of these keys has signed (--from FILE), or add this machine's key to `trust` (ckp keys export)",
    )


def _certificates(data: bytes, file: Path, where: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="ckp-trust-") as folder:
        copy = Path(folder) / "keyring"
        copy.write_bytes(data)
        try:
            return certificates(read_keyring(str(copy), "what the site installs"))
        except VerificationFailed as error:
            brief = error.brief.replace(str(copy), str(file))
            raise InvalidInput(f"{where}: {brief}", resolution="name a keyring of public keys, as `ckp keys export` writes it") from None


def _dearmoured(data: bytes, file: Path) -> bytes:
    """Binary, whichever way it was exported."""
    if not data.lstrip().startswith(b"-----BEGIN"):
        return data
    found = []
    for block in _ARMOUR.findall(data.decode(errors="replace").replace("\r\n", "\n")):
        lines = [line.strip() for line in block.splitlines()]
        try:
            found.append(base64.b64decode("".join(line for line in lines if not line.startswith("=")), validate=True))
        except binascii.Error:
            raise InvalidInput(f"{file} is not a keyring: its base64 is broken", resolution="export it again: ckp keys export") from None
    if not found:
        raise InvalidInput(f"{file} holds no public keys", resolution="name a keyring, as `ckp keys export` writes it; a private key is never needed")
    return b"".join(found)


# -- files


def _where(spec: SiteSpec, place: tuple[str | int, ...], key: str) -> str:
    line = spec.line(*place)
    return f"{spec.file or 'site'}:{line}: {key}" if line else key
