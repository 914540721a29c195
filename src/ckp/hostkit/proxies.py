"""The one rule about proxies, for all that the host tool and its programs connect to.

HTTPS_PROXY and NO_PROXY of the tool's own environment decide (for the agent a drop-in of ckp-agent.service; lower-case names count too). Connections
to the hub, the registry and package sources go through the proxy unless NO_PROXY names their host. kubeadm, the kubelet and kubectl never get it:
the API server, pods and services are always reached directly.

Where that environment has none, the proxy that the site gives to its hosts takes its place (`adopt`).
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from typing import Mapping, Optional
from urllib.parse import quote, unquote, urlsplit

from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.locations import SITE_SETTINGS

ALWAYS_DIRECT = ("localhost", "127.0.0.0/8", "::1", ".svc", ".cluster.local")
"""What no proxy is asked for, whatever NO_PROXY says: the host itself, and names inside a cluster."""
ANSWER_BYTES = 16 << 10
DEFAULT_PORT = 3128
NAMES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")


class ProxyError(OSError):
    """The proxy did not open a tunnel. Its text names proxy, target and answer, and has no password."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that opens tunnels (CONNECT)."""

    host: str
    port: int
    credentials: str = ""
    """For Proxy-Authorization: base64 of user:password."""

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def url(self) -> str:
        """With the credentials: not for a text that people read."""
        userinfo = base64.b64decode(self.credentials).decode().partition(":")
        return str(self).replace("//", f"//{quote(userinfo[0], safe='')}:{quote(userinfo[2], safe='')}@", 1) if self.credentials else str(self)

    def __repr__(self) -> str:
        return f"Proxy({self})"


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return (environment.get(name) or environment.get(name.lower()) or "").strip()


def proxy(environment: Mapping[str, str] = os.environ) -> Optional[Proxy]:
    """The proxy of HTTPS_PROXY; None if there is none.

    Raises:
        InvalidInput: it is not the URL of an HTTP proxy. The text has no password.
    """
    text = _variable("HTTPS_PROXY", environment)
    if not text:
        return None
    how = "write it as http://PROXY:PORT, or http://USER:PASSWORD@PROXY:PORT"
    try:
        parts = urlsplit(text if "://" in text else "http://" + text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput("HTTPS_PROXY is not the URL of a proxy", resolution=how) from None
    if parts.scheme != "http":
        raise InvalidInput(f"HTTPS_PROXY is a proxy of the kind {parts.scheme}://, which is not supported", resolution=how)
    if not host or re.search(r"\s", text):
        raise InvalidInput("HTTPS_PROXY is not the URL of a proxy", resolution=how)
    credentials = ""
    if parts.username is not None:
        credentials = base64.b64encode(f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()).decode()
    return Proxy(host, port or DEFAULT_PORT, credentials)


def adopt(path: str = SITE_SETTINGS, *, replace: bool = False) -> None:
    """Take the site's proxy into the tool's own environment, unless that names one: what the host's owner has set comes first.

    Args:
        path: the site's settings; without them, or if they can't be read, nothing is taken.
        replace: whatever the environment says, as after a change of the settings.
    """
    given = [name for name in (*NAMES, *(name.lower() for name in NAMES)) if os.environ.get(name)]
    if given and not replace:
        return
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, ValueError):
        data = {}
    keys = {"HTTPS_PROXY": "httpsProxy", "HTTP_PROXY": "httpProxy", "NO_PROXY": "noProxy"}
    values = {name: data.get(key) for name, key in keys.items()} if isinstance(data, dict) else {}
    for name in given:
        del os.environ[name]
    os.environ.update({name: value for name, value in values.items() if isinstance(value, str) and value})


def no_proxy(environment: Mapping[str, str] = os.environ) -> str:
    """NO_PROXY with ALWAYS_DIRECT, as programs get it."""
    given = [part.strip() for part in _variable("NO_PROXY", environment).split(",") if part.strip()]
    return ",".join([*given, *(part for part in ALWAYS_DIRECT if part not in given)])


def is_direct(host: str, port: int, entries: str) -> bool:
    """Whether a NO_PROXY names this host, read as Go's programs read it (golang.org/x/net/http/httpproxy).

    `*`; an address or a CIDR; `example.org` (with its subdomains) or `.example.org` (only those); each may end in `:port`.
    """
    name = host.lower().rstrip(".").strip("[]")
    address = _address(name)
    for entry in (part.strip().lower() for part in entries.split(",")):
        if not entry:
            continue
        if entry == "*":
            return True
        if address is not None and "/" in entry:
            try:
                if address in ipaddress.ip_network(entry, strict=False):
                    return True
            except ValueError:
                pass
            continue
        entry, wanted = _without_port(entry)
        if wanted and wanted != port:
            continue
        if address is not None:
            if _address(entry) == address:
                return True
        elif entry.startswith((".", "*.")):
            if name.endswith(entry.lstrip("*")):
                return True
        elif name == entry or name.endswith("." + entry):
            return True
    return False


def _address(text: str) -> Optional[object]:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _without_port(entry: str) -> tuple[str, int]:
    """`host:8443` as ("host", 8443); port 0 if there is none."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:]+):(\d{1,5})", entry)
    return (match.group(1).strip("[]"), int(match.group(2))) if match else (entry.strip("[]"), 0)


def proxy_for(host: str, port: int, environment: Mapping[str, str] = os.environ) -> Optional[Proxy]:
    """The proxy for connections to this host; None if they are direct. InvalidInput as proxy()."""
    found = proxy(environment)
    return None if found is None or is_direct(host, port, no_proxy(environment)) else found


def environment(source: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for a program that may use the proxy, in both spellings; empty without a proxy."""
    values = {name: _variable(name, source) for name in ("HTTPS_PROXY", "HTTP_PROXY")}
    values = {name: value for name, value in values.items() if value}
    if not values:
        return {}
    values["NO_PROXY"] = no_proxy(source)
    return {**values, **{name.lower(): value for name, value in values.items()}}


def connect(host: str, port: int, timeout: float, environment: Mapping[str, str] = os.environ) -> socket.socket:
    """A TCP connection to a server, through the proxy if the rule says so. `timeout` seconds for each of TCP and CONNECT.

    Raises:
        ProxyError: the proxy can't be reached, or refuses.
        OSError: the server can't be reached.
    """
    try:
        used = proxy_for(host, port, environment)
    except InvalidInput as error:
        raise ProxyError(error.sentence()) from None
    if used is None:
        return socket.create_connection((host, port), timeout=timeout)
    try:
        link = socket.create_connection((used.host, used.port), timeout=timeout)
    except OSError as error:
        raise ProxyError(f"the proxy {used} (HTTPS_PROXY) can't be reached: {error.strerror or error}") from None
    try:
        _tunnel(link, used, host, port, timeout)
    except BaseException:
        link.close()
        raise
    return link


def _tunnel(link: socket.socket, used: Proxy, host: str, port: int, timeout: float) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", "User-Agent: ckp-agent"]
    if used.credentials:
        lines.append(f"Proxy-Authorization: Basic {used.credentials}")
    deadline = time.monotonic() + timeout
    answer = b""
    try:
        link.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        while b"\r\n\r\n" not in answer:
            left = deadline - time.monotonic()
            if left <= 0 or len(answer) > ANSWER_BYTES:
                raise ProxyError(f"the proxy {used} (HTTPS_PROXY) gave no proper answer to CONNECT {target}")
            link.settimeout(left)
            part = link.recv(1)  # byte by byte: what follows the header belongs to the tunnel
            if not part:
                raise ProxyError(f"the proxy {used} (HTTPS_PROXY) closed the connection at CONNECT {target}")
            answer += part
    except ProxyError:
        raise
    except socket.timeout:
        raise ProxyError(f"the proxy {used} (HTTPS_PROXY) did not answer to CONNECT {target} within {timeout:.0f} s") from None
    except (OSError, UnicodeEncodeError) as error:
        raise ProxyError(f"CONNECT {target} to the proxy {used} (HTTPS_PROXY) failed: {error}") from None
    status = answer.split(b"\r\n", 1)[0].decode("latin-1")
    match = re.fullmatch(r"HTTP/1\.[01] (\d{3})( .*)?", status)
    if match is None or match.group(1) != "200":
        what = f"{match.group(1)}{match.group(2) or ''}" if match else "something that is not HTTP"
        raise ProxyError(
            f"the proxy {used} (HTTPS_PROXY) answered {what.strip()[:120]} to CONNECT {target}; name the host in NO_PROXY if it is reached directly"
        )
    link.settimeout(timeout)
