"""What runs on a host during a check, by the host's own Python (3.9 or newer) from standard input or `-c`: no file is written there.

Its last line, which the caller adds, is `main(REQUEST)`; the answer is one line of JSON. It must import nothing of CKP but by name, after the tool
that came with the request is loaded.
"""

from __future__ import annotations

import base64
import fcntl
import http.client
import importlib
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAME_SECONDS = 10.0
CONNECT_SECONDS = 3.0
ARP_ROUNDS, ARP_SECONDS = 3, 0.4
SIOCGIFHWADDR = 0x8927
NTP_EPOCH = 2208988800
"""Seconds from 1900 to 1970."""
ETHERTYPE_ARP, ARP_REQUEST, ARP_REPLY = 0x0806, 1, 2


def survey(request: dict[str, Any]) -> dict[str, Any]:
    """What the host tool says of this host, and names and proxy as they are from here."""
    sys.path.insert(0, in_memory("ckp-agent", base64.b64decode(request["tool"])))
    tool = importlib.import_module("ckp.hosttool.preflight")
    settings = in_memory("host.json", request["settings"].encode())
    found: dict[str, Any] = tool.survey(request["role"], host_json=settings, wanted=request["ports"], **request["more"])
    for each in found["findings"]:
        each["problem"] = each["problem"].replace(settings, "hostSettings")
    found["names"] = resolve(request["names"])
    found["proxy"] = reach_proxy(request["proxy"])
    found["database"] = connect(*request["database"]) if request["database"] else ""
    found["registry"] = ask_registry(**request["registry"]) if request.get("registry") else 0
    site_settings = importlib.import_module("ckp.agent.system.site_settings")
    found["untaken"] = site_settings.problems(site_settings.parse(request.get("site_settings", "")))
    found["nameservers"] = at_once(ask_nameserver, request.get("nameservers", []))
    found["time_servers"] = at_once(ask_time, request.get("time_servers", []))
    return found


def in_memory(name: str, content: bytes) -> str:
    """The path of a file that is in memory only, until this process ends."""
    handle = os.memfd_create(name)
    with os.fdopen(handle, "wb", closefd=False) as stream:
        stream.write(content)
    return f"/proc/self/fd/{handle}"


def resolve(names: list[str]) -> dict[str, list[str]]:
    """Addresses of names, all at a time: a resolver that does not answer keeps a lookup for long."""
    found: dict[str, list[str]] = {name: [] for name in names}

    def look(name: str) -> None:
        try:
            found[name] = sorted({str(item[4][0]) for item in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
        except (OSError, UnicodeError):
            pass

    threads = [threading.Thread(target=look, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + NAME_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def reach_proxy(url: str) -> str:
    """Why the proxy is not reached; "" if it is."""
    if not url:
        return ""
    parts = urlsplit(url)
    return connect(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def ask_registry(host: str, repository: str, ca: str, basic: str) -> Any:
    """The status that a registry answers with to a pull of what is not there, or why it is not reached. By TLS, and without a proxy."""
    address, _, port = host.partition(":")
    headers = {"Authorization": "Basic " + basic} if basic else {}
    try:
        context = ssl.create_default_context(cadata=ca or None)
        link = http.client.HTTPSConnection(address, int(port or 443), timeout=NAME_SECONDS, context=context)
        link.request("GET", f"/v2/{repository}/manifests/none", headers=headers)
        answer = link.getresponse()
        answer.read()
        tokens = importlib.import_module("ckp.agent.fetch.tokens")
        challenge = tokens.challenge_of(answer.getheader("WWW-Authenticate", "")) if answer.status == 401 else None
        if challenge is not None and (token := tokens.fetch(challenge, basic, context)):
            link.request("GET", f"/v2/{repository}/manifests/none", headers={"Authorization": "Bearer " + token})
            answer = link.getresponse()
        return answer.status
    except ssl.SSLError as error:
        return f"its certificate is not trusted: {getattr(error, 'verify_message', '') or error.reason}"
    except (OSError, http.client.HTTPException) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def at_once(ask: Callable[[str], Any], servers: list[str]) -> dict[str, Any]:
    """Server -> its answer, or in words why there is none; all at a time."""
    found: dict[str, Any] = {}

    def one(server: str) -> None:
        try:
            found[server] = ask(server)
        except TimeoutError:  # of Python 3.9, where it is not yet TimeoutError
            found[server] = "no answer"
        except (OSError, ValueError, struct.error, IndexError) as error:
            found[server] = getattr(error, "strerror", None) or str(error) or "no answer"

    threads = [threading.Thread(target=one, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + NAME_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {server: found.get(server, "no answer") for server in servers}


def exchange(server: str, port: int, message: bytes) -> bytes:
    """The answer to a datagram; asked twice, since one may be lost."""
    for last in (False, True):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.settimeout(CONNECT_SECONDS)
            link.connect((server, port))
            link.send(message)
            try:
                return link.recv(4096)
            except TimeoutError:
                if last:
                    raise
    return b""


def ask_nameserver(server: str) -> str:
    """Any answer to a question for the root's name servers will do (RFC 1035, 4.1)."""
    token = os.urandom(2)
    answer = exchange(server, 53, token + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x00\x00\x02\x00\x01")
    return "" if answer[:2] == token else "what answers is not a name server"


def ask_time(server: str) -> Any:
    """Seconds that a time server is ahead of this clock (SNTP, RFC 4330, 5)."""
    before = time.time()
    answer = exchange(server, 123, b"\x23" + bytes(47))
    after = time.time()
    received, sent = (seconds + fraction / 2**32 - NTP_EPOCH for seconds, fraction in struct.iter_unpack("!II", answer[32:48]))
    if answer[0] & 7 != 4 or not 1 <= answer[1] <= 15:
        return "it does not know the time itself"
    return ((received - before) + (sent - after)) / 2


def connect(address: str, port: int, say: bytes = b"") -> str:
    """Why there is no connection; "" if there is one."""
    try:
        with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as made:
            if say:
                made.sendall(say)
    except TimeoutError:  # of Python 3.9, where it is not yet TimeoutError
        return "no answer"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def connect_all(targets: list[list[Any]], say: bytes) -> list[list[Any]]:
    """`connect` to each [address, port], all at a time: [address, port, why not]."""
    results: list[list[Any]] = []

    def attempt(address: str, port: int) -> None:
        results.append([address, port, connect(address, port, say)])

    threads = [threading.Thread(target=attempt, args=(address, port)) for address, port in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def listen(ports: list[int], token: str, seconds: float) -> None:
    """Take connections on ports until one of them brings the token. Ports that something else has are left to that."""
    listeners = []
    for port in ports:
        try:
            listeners.append(socket.create_server(("0.0.0.0", port)))
        except OSError:
            continue
    print(json.dumps({"listening": [each.getsockname()[1] for each in listeners]}), flush=True)
    deadline = time.monotonic() + seconds
    while listeners and time.monotonic() < deadline:
        for each in select.select(listeners, [], [], 0.5)[0]:
            made, _ = each.accept()
            with made:
                made.settimeout(1)
                try:
                    if made.recv(len(token)) == token.encode():
                        return
                except OSError:
                    continue


def link_of(address: str, routes: str = "/proc/net/route") -> str:
    """The link on which an address is, without a router between; "" if there is none."""
    wanted = struct.unpack("=I", socket.inet_aton(address))[0]
    best, found = -1, ""
    for line in Path(routes).read_text(encoding="ascii").splitlines()[1:]:
        parts = line.split()
        target, gateway, mask = (int(parts[index], 16) for index in (1, 2, 7))
        if gateway == 0 and wanted & mask == target and bin(mask).count("1") > best:
            best, found = bin(mask).count("1"), parts[0]
    return found


def answers(addresses: list[str]) -> dict[str, str]:
    """Who answers ARP probes for these addresses (RFC 5227): address -> hardware address. Nothing is announced, and nobody's table is changed."""
    by_link: dict[str, list[str]] = {}
    for address in addresses:
        link = link_of(address)
        if link:
            by_link.setdefault(link, []).append(address)
    found: dict[str, str] = {}
    for link, wanted in by_link.items():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as probe:
            probe.bind((link, ETHERTYPE_ARP))
            own = fcntl.ioctl(probe.fileno(), SIOCGIFHWADDR, struct.pack("256s", link.encode()[:15]))[18:24]
            for _ in range(ARP_ROUNDS):
                for address in wanted:
                    body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, ARP_REQUEST, own, bytes(4), bytes(6), socket.inet_aton(address))
                    probe.send(b"\xff" * 6 + own + struct.pack("!H", ETHERTYPE_ARP) + body)
                deadline = time.monotonic() + ARP_SECONDS
                while time.monotonic() < deadline:
                    if select.select([probe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                        seen = reply(probe.recv(2048))
                        if seen and seen[0] in wanted and seen[1] != own:
                            found[seen[0]] = ":".join(f"{byte:02x}" for byte in seen[1])
    return found


def reply(frame: bytes) -> tuple[str, bytes] | None:
    """(address, hardware address) of an ARP reply; None for any other frame."""
    if len(frame) < 42 or struct.unpack("!H", frame[12:14])[0] != ETHERTYPE_ARP or struct.unpack("!H", frame[20:22])[0] != ARP_REPLY:
        return None
    return socket.inet_ntoa(frame[28:32]), frame[22:28]


def main(request: dict[str, Any]) -> None:
    """Do what is asked for and print the answer."""
    action = request["action"]
    if action == "listen":
        listen(request["ports"], request["token"], request["seconds"])
        return
    if action == "survey":
        answer: Any = survey(request)
    elif action == "answers":
        answer = answers(request["addresses"])
    else:
        answer = connect_all(request["targets"], request["say"].encode())
    print(json.dumps(answer))
