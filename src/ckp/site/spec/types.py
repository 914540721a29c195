"""The types of single values in `site.yaml`: each reads text as it is written in the file, and says what to write instead of what it does not take."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo

from ckp.catalog.load import Catalog
from ckp.kits.clock import exact_duration, parse_duration
from ckp.rules.endpoints import is_name
from ckp.site.spec.findings import Refused, shown

T = TypeVar("T")
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""RFC 1123."""
FOLDER = "folder"
"""Key of the validation context: the folder (a Path) that relative paths are relative to."""
SHORTEST_INTERVAL = timedelta(minutes=5)
LONGEST_INTERVAL = timedelta(days=31)


@dataclass(frozen=True)
class Kind:
    """What a value of a type is, in the words of the reference."""

    text: str


def _text(check: Callable[[str], None]) -> AfterValidator:
    def checked(value: str) -> str:
        check(value)
        return value

    return AfterValidator(checked)


def _parsed(kind: type[T], parse: Callable[[str], T]) -> BeforeValidator:
    """Values that are of the type already are taken as they are."""
    return BeforeValidator(lambda value: value if isinstance(value, kind) else parse(str(value)))


# -- names


def _label(text: str) -> None:
    if not LABEL.fullmatch(text):
        raise Refused(
            f"{shown(text)} is not a name", "write 1 to 63 lower-case letters, digits and dashes, with a letter or digit at both ends, such as node-1"
        )


def _dns_name(text: str) -> None:
    if not is_name(text) or text.startswith("*"):
        raise Refused(f"{shown(text)} is not a DNS name", "write one in lower case, such as registry.example.com")


def _name_or_address(text: str) -> None:
    if not is_name(text) and not _is_address(text):
        raise Refused(f"{shown(text)} is neither a DNS name nor an IPv4 address", "write one in lower case, such as api.example.com, or 192.0.2.10")


def _is_address(text: str) -> bool:
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True


def _class_name(text: str) -> None:
    if len(text) > 253 or not all(LABEL.fullmatch(part) for part in text.split(".")):
        raise Refused(f"{shown(text)} is not the name of a class", "write its name as kubectl prints it, such as fast-ssd")


def _load_balancer_class(text: str) -> None:
    if not re.fullmatch(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", text):
        raise Refused(
            f"{shown(text)} is not a load balancer class", "write spec.loadBalancerClass as that load balancer's manual has it, such as example.com/internal"
        )


def _ssh_host(text: str) -> None:
    if "@" in text:
        raise Refused(f"{shown(text)} names a user as well", "write the part before @ as `user`")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,254}", text):  # never an option of ssh
        raise Refused(f"{shown(text)} is nothing that ssh can be called with", "write a host name, an address, or an alias of ssh_config")


def _user(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}", text):
        raise Refused(f"{shown(text)} is not a user's name", "write the login name on that host, such as root")


def _line(text: str) -> None:
    if not text.strip() or len(text) > 200 or not text.isprintable():
        raise Refused(f"{shown(text)} is not a line of text", "write 1 to 200 characters on one line")


def _bucket(text: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text):
        raise Refused(f"{shown(text)} is not a bucket's name", "write 3 to 63 lower-case letters, digits, dots and dashes")


def _region(text: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise Refused(f"{shown(text)} is not a region", "write lower-case letters, digits and dashes, such as eu-central-1")


def _prefix(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", text) or len(text) > 200 or ".." in text.split("/"):
        raise Refused(f"{shown(text)} is not a prefix", "write names with / between them and none at the ends, such as backups/site-a")


def _repository_prefix(text: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", text) or len(text) > 200:
        raise Refused(f"{shown(text)} can't begin a repository's name", "write lower-case names with / between them, such as infra/ckp")


Label = Annotated[str, _text(_label), Kind("name (RFC 1123 label)")]
DnsName = Annotated[str, _text(_dns_name), Kind("DNS name")]
NameOrAddress = Annotated[str, _text(_name_or_address), Kind("DNS name or IPv4 address")]
ClassName = Annotated[str, _text(_class_name), Kind("name of a class")]
LoadBalancerClass = Annotated[str, _text(_load_balancer_class), Kind("load balancer class")]
SshHost = Annotated[str, _text(_ssh_host), Kind("host name, address or alias of ssh_config")]
UserName = Annotated[str, _text(_user), Kind("user name")]
Line = Annotated[str, _text(_line), Kind("text")]
Bucket = Annotated[str, _text(_bucket), Kind("bucket name")]
Prefix = Annotated[str, _text(_prefix), Kind("prefix")]
Region = Annotated[str, _text(_region), Kind("region")]
RepositoryPrefix = Annotated[str, _text(_repository_prefix), Kind("repository prefix")]

# -- addresses


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise Refused(f"{shown(text)} is not an IPv4 address", "write one such as 192.0.2.10") from None


def _network(text: str) -> IPv4Network:
    try:
        found = IPv4Network(text, strict=False)
    except ValueError:
        raise Refused(f"{shown(text)} is not an IPv4 network", "write one such as 192.0.2.0/24") from None
    if "/" not in text:
        raise Refused(f"{shown(text)} has no prefix length", f"write one such as {text.rpartition('.')[0]}.0/24")
    if str(found) != text:
        raise Refused(f"{shown(text)} is not how that network is written", f"write {found}")
    return found


def _no_proxy(text: str) -> None:
    if not is_name(text.removeprefix(".")) and not _is_address(text):
        try:
            _network(text)
        except Refused:
            raise Refused(f"{shown(text)} is neither a domain, an address nor a network", "write one such as example.com, 192.0.2.10 or 192.0.2.0/24") from None


def _port(value: int) -> int:
    if not 1 <= value <= 65535:
        raise Refused(f"{value} is not a port", "write a number from 1 to 65535")
    return value


def _registry_address(text: str) -> None:
    host, colon, port = text.partition(":")
    if "/" in text:
        raise Refused(f"{shown(text)} is not the address of a registry", "write host:port, without https:// and without a path; a path belongs into `prefix`")
    if not (is_name(host) or _is_address(host)) or (colon and not (re.fullmatch(r"[1-9][0-9]{0,4}", port) and int(port) <= 65535)):
        raise Refused(f"{shown(text)} is not the address of a registry", "write host:port, such as registry.example.com:5000")
    if not colon and "." not in host:
        raise Refused(f"{shown(text)} is not taken for a registry in images' names", "write its port, or a name with a dot")


def _url(*schemes: str) -> AfterValidator:
    def check(text: str) -> None:
        example = f"write one such as {schemes[0]}://example.com:8080"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise Refused(f"{shown(text)} is not a URL", example) from None
        host = parts.hostname or ""
        if parts.scheme not in schemes or port == 0 or not (is_name(host) or _is_address(host)) or re.search(r"[\s\x00-\x1f]", text):
            raise Refused(f"{shown(text)} is not a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}", example)
        if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise Refused(f"{shown(parts.scheme + '://…')} has more than a host and a port", example)

    return _text(check)


Address = Annotated[IPv4Address, _parsed(IPv4Address, _address), Kind("IPv4 address")]
Network = Annotated[IPv4Network, _parsed(IPv4Network, _network), Kind("IPv4 network (CIDR)")]
NoProxy = Annotated[str, _text(_no_proxy), Kind("domain, IPv4 address or network")]
Port = Annotated[int, AfterValidator(_port), Kind("port (1 to 65535)")]
RegistryAddress = Annotated[str, _text(_registry_address), Kind("host:port")]
ProxyUrl = Annotated[str, _url("http"), Kind("URL that begins with http://")]
Endpoint = Annotated[str, _url("https", "http"), Kind("URL")]

# -- files


def _file(value: object, info: ValidationInfo) -> Path:
    text = str(value)
    if not text or "\0" in text or "://" in text:
        raise Refused(f"{shown(text)} is not a path", "write the path of a file, relative to this file or absolute")
    path = Path(text)
    if path.parts[:1] == ("~",):
        try:
            path = path.expanduser()
        except RuntimeError:
            raise Refused(f"{shown(text)} needs a home folder, and there is none", "write an absolute path") from None
    folder = (info.context or {}).get(FOLDER)
    return path if folder is None else folder / path


def _host_path(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if not re.fullmatch(r"(/[A-Za-z0-9_.-]+)+", text) or ".." in path.parts or "." in text.split("/"):
        raise Refused(f"{shown(text)} is not a path on a host", "write an absolute path without .. and spaces, such as /var/lib/ckp")
    return path


FilePath = Annotated[Path, BeforeValidator(_file), Kind("path of a file on this machine")]
HostPath = Annotated[PurePosixPath, _parsed(PurePosixPath, _host_path), Kind("absolute path on the management hosts")]

# -- others


def _interval(text: str) -> timedelta:
    try:
        found = timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        raise Refused(f"{shown(text)} is not a duration", "write one such as 90m, 24h or 1h30m") from None
    if not SHORTEST_INTERVAL <= found <= LONGEST_INTERVAL:
        shortest, longest = (exact_duration(int(bound.total_seconds())) for bound in (SHORTEST_INTERVAL, LONGEST_INTERVAL))
        raise Refused(f"{shown(text)} is no interval for this", f"write one from {shortest} to {longest}")
    return found


def _count(value: int) -> int:
    if not 1 <= value <= 1000:
        raise Refused(f"{value} is not a number of backups", "write a number from 1 to 1000")
    return value


def _fingerprint(text: str) -> str:
    found = re.sub(r"\s", "", text).upper().removeprefix("0X")
    if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", found):
        raise Refused(f"{shown(text)} is not the fingerprint of an OpenPGP key", "write all 40 (or 64) hexadecimal digits; a key ID is too short to be trusted")
    return found


@cache
def catalog_releases() -> tuple[str, ...]:
    """Names of the catalog's releases, oldest first."""
    return tuple(Catalog().names())


@cache
def newest_release() -> str:
    """The release that a site offers if its file names none."""
    return Catalog().latest()


def catalog_systems() -> tuple[str, ...]:
    """The operating systems that releases of the catalog have bundles for, such as `debian-12`."""
    catalog = Catalog()
    return tuple(sorted({target.system for name in catalog.names() for target in catalog.release(name).bundles}))


def _system(text: str) -> None:
    if text not in catalog_systems():
        raise Refused(f"{shown(text)} is not an operating system of a release", f"write one of {', '.join(catalog_systems())}")


def _release(text: str) -> None:
    if text not in catalog_releases():
        raise Refused(f"{shown(text)} is not a release of the catalog", f"write one of {', '.join(catalog_releases())}")


Interval = Annotated[
    timedelta,
    _parsed(timedelta, _interval),
    PlainSerializer(lambda value: exact_duration(int(value.total_seconds())), return_type=str, when_used="json"),
    Kind("duration"),
]
Count = Annotated[int, AfterValidator(_count), Kind("number (1 to 1000)")]
Fingerprint = Annotated[str, BeforeValidator(lambda value: _fingerprint(str(value))), Kind("OpenPGP fingerprint (hexadecimal)")]
SystemName = Annotated[str, _text(_system), Kind("operating system, such as `ubuntu-24.04`")]
ReleaseName = Annotated[str, _text(_release), Kind("release of the catalog")]
