"""The one line by which a machine becomes a host: it pins the site's CA, and all else that it fetches is verified with that. Pure."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ckp.kits.errors import InvalidInput

ENROLMENT_PORT, CHANNEL_PORT = 8443, 9443
"""Of the hub's Service (deploy/60-hub.yaml)."""
CA_PATH, SCRIPT_PATH, SITE_PATH, PACKAGES_PATH = "/v1/join/ca.pem", "/v1/join/join.sh", "/v1/join/site.json", "/packages/"
"""What the hub serves beside enrolment. None of it is a secret."""

_PROXY = re.compile(r"http://[A-Za-z0-9.-]+:[0-9]{1,5}/?")
_NO_PROXY = re.compile(r"[A-Za-z0-9.*:/-]+(,[A-Za-z0-9.*:/-]+)*")
SUDO = "sudo "
"""How the line becomes root; for root itself the rest of it is enough."""
_KEY = re.compile(r"[A-Za-z0-9_-]{16,256}")


@dataclass(frozen=True)
class Proxy:
    """The proxy that a host needs to reach the hub.

    Args:
        url: `http://HOST:PORT`.
        exceptions: NO_PROXY, as Go's programs read it; empty for none.

    Raises:
        InvalidInput: not a proxy's URL; or it has a password, which every user of the host could read in the line's arguments.
    """

    url: str
    exceptions: str = ""

    def __post_init__(self) -> None:
        if "@" in self.url:
            raise InvalidInput(
                "a proxy's password cannot be in the line: every user of the host could read it",
                resolution="leave it out, and see the guide to bringing your own hosts: a proxy with a password",
            )
        if not _PROXY.fullmatch(self.url):
            raise InvalidInput(f"{self.url!r} is not the URL of a proxy", resolution="write http://HOST:PORT")
        if self.exceptions and not _NO_PROXY.fullmatch(self.exceptions):
            raise InvalidInput(
                f"{self.exceptions!r} is not a list of exceptions", resolution="write addresses, networks and domains with commas between them, without spaces"
            )


def anchor(pem: bytes) -> bytes:
    """The certificates of a PEM file as the hub serves them: its digest does not depend on who wrote the file, nor on comments in it.

    Raises:
        InvalidInput: there is no certificate in it.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidInput(f"the CA is not a PEM file with certificates: {error}") from None
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in found)


def fingerprint(pem: bytes) -> str:
    """SHA-256 of `anchor`, in hexadecimal: what the line compares the fetched CA with. Raises as `anchor`."""
    return hashlib.sha256(anchor(pem)).hexdigest()


def line(hub: str, ca: bytes, domain: str, project: str, proxy: Proxy | None = None) -> str:
    """The line, for a POSIX shell: it becomes root, fetches the CA and compares it, and runs the hub's script, verified by TLS with that CA alone.

    The script asks for the project's key at the terminal, or takes it from standard input (`with_key`).

    Args:
        hub: IPv4 address or name of the hub.
        ca: PEM of the CA that the hub's certificate chains to.

    Raises:
        InvalidInput: the CA has no certificate, or the hub has an IPv6 address.
    """
    if ":" in hub:
        raise InvalidInput(f"the hub's address {hub} is of IPv6, which the line cannot use", resolution="give the hub a name or an IPv4 address")
    # -q: no .curlrc; --capath: Debian's curl trusts the system's CAs beside --cacert; --noproxy: no variables of the environment.
    way = f'-x {shlex.quote(proxy.url)} --noproxy ""' if proxy else '--noproxy "*"'
    curl = f"curl -q -fsS -m 120 --retry 5 --capath /dev/null {way}"
    arguments = ["sh", "join.sh", "--hub", hub, "--project", f"{domain}/{project}"]
    if proxy:
        arguments += ["--proxy", proxy.url, *(["--no-proxy", proxy.exceptions] if proxy.exceptions else [])]
    site = f"https://{hub}:{ENROLMENT_PORT}"
    steps = [
        "set -e",
        "d=$(mktemp -d)",
        'trap "rm -rf $d" EXIT',
        'trap "exit 130" HUP INT TERM',
        "cd $d",
        f"{curl} -k -o ca.pem {site}{CA_PATH}",
        f'echo "{fingerprint(ca)}  ca.pem" | sha256sum -c --quiet - || {{ echo "error: {hub} has another CA than this line" >&2; exit 1; }}',
        f"{curl} --cacert ca.pem -o join.sh {site}{SCRIPT_PATH}",
        shlex.join(arguments),
    ]
    return f"{SUDO}sh -c {shlex.quote('; '.join(steps))}"


def with_key(command: str, key: str) -> str:
    """The line with the project's key. `printf` is part of every shell: typed at a prompt, the key is in no process' arguments, but in the history.

    Raises:
        InvalidInput: it is not such a key.
    """
    if not _KEY.fullmatch(key):
        raise InvalidInput("this is not a pre-shared key of a project", resolution="make one: ckp host psk --reset")
    return f"printf '%s\\n' {key} | {command}"
