"""Who this host is: a private key that never leaves it, and the certificate that the hub gives for it after a person's approval."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
from typing import Any, Callable
from urllib.parse import urlsplit

from ckp.agent import messages
from ckp.agent.config import Config
from ckp.agent.status import Status
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import atomic_write, read_text, remove, sync_folder
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run

REQUEST_SECONDS = 20.0
MAX_ANSWER = 1 << 20
PSK_MIN = 16


class EnrolmentFailed(AgentError):
    """The hub said no, or can't be trusted."""

    default_reason = "EnrolmentFailed"


class HubUnreachable(AgentError):
    """The hub did not answer; it is asked again."""

    default_reason = "HubUnreachable"


class Backoff:
    """Delays that grow and are never the same on two hosts, so that many hosts don't come back at one moment."""

    def __init__(self, first: float, most: float, factor: float = 2.0) -> None:
        self.first, self.most, self.factor = first, most, factor
        self._next = first

    def reset(self) -> None:
        """Begin again with the shortest delay."""
        self._next = self.first

    def delay(self) -> float:
        """Seconds to wait now: between half and all of the present step."""
        step, self._next = self._next, min(self.most, self._next * self.factor)
        return step * random.uniform(0.5, 1.0)


class Identity:
    """The host's key, certificate and CA in the state folder. cert.pem is written last: with it, the host is enrolled."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self.key = os.path.join(state_dir, "key.pem")
        self.certificate = os.path.join(state_dir, "cert.pem")
        self.ca = os.path.join(state_dir, "ca.pem")
        self.about = os.path.join(state_dir, "identity.json")
        self.ticket = os.path.join(state_dir, "enrolment.json")
        self.next_key = os.path.join(state_dir, "key-next.pem")
        self.next_certificate = os.path.join(state_dir, "cert-next.pem")
        self.last_key = os.path.join(state_dir, "key-last.pem")
        self.last_certificate = os.path.join(state_dir, "cert-last.pem")
        self._settle()

    @property
    def enrolled(self) -> bool:
        """Whether this host has everything for the channel."""
        return all(os.path.exists(path) for path in (self.key, self.certificate, self.ca, self.about))

    @property
    def host(self) -> str:
        """The name that the hub gave this host; "" before that."""
        try:
            return str(json.loads(read_text(self.about, "{}")).get("host", ""))
        except ValueError:
            return ""

    def make_csr(self) -> str:
        """A CSR for the key, which is made on first use (ECDSA P-256, 0600). The hub ignores the subject."""
        os.makedirs(self.state_dir, mode=0o700, exist_ok=True)
        if not read_text(self.key):
            _make_key(self.key)
        return _csr(self.key)

    def make_next_csr(self) -> str:
        """A CSR for the key that comes after the present one: a renewed certificate is never for an old key."""
        self._settle()  # an earlier renewal that could not be finished must not get this one's key
        _make_key(self.next_key)
        return _csr(self.next_key)

    def store(self, status: messages.EnrolmentStatus, pinned_ca: str) -> None:
        """Keep what the hub gave, if the certificate fits our key.

        Raises:
            EnrolmentFailed: it does not fit, or is no certificate.
        """
        self._check_pair(status.certificate, self.key, status.ca)
        atomic_write(self.ca, status.ca or read_text(pinned_ca), mode=0o644)
        atomic_write(self.about, json.dumps({"host": status.host}), mode=0o644)
        atomic_write(self.certificate, status.certificate, mode=0o644)
        remove(self.ticket)

    def store_next(self, issued: messages.IssuedCertificate) -> None:
        """Take a renewed certificate into use. A power cut at any moment leaves the old pair or the new one, and both are good.

        Raises:
            EnrolmentFailed: it does not fit the key that was sent, or is no certificate; the old one stays.
        """
        self._check_pair(issued.certificate, self.next_key, issued.ca)
        atomic_write(self.ca, issued.ca, mode=0o644)
        atomic_write(self.next_certificate, issued.certificate, mode=0o644)
        self._settle()

    def _settle(self) -> None:
        """Finish a renewal: with cert-next.pem, which was checked against key-next.pem before it got its name, the new pair is whole.

        The pair of before is kept until the hub has taken the new one (see confirm).
        """
        if os.path.exists(self.next_certificate):
            if os.path.exists(self.next_key):
                _link(self.key, self.last_key)
                _link(self.certificate, self.last_certificate)
                os.replace(self.next_key, self.key)
            os.replace(self.next_certificate, self.certificate)
            sync_folder(self.state_dir)

    def confirm(self) -> None:
        """The hub has taken the present certificate: the one before it is void."""
        for path in (self.last_certificate, self.last_key):
            remove(path)

    def fall_back(self) -> bool:
        """The hub refuses the present certificate: change places with the one before it, if that is still kept. Whether it was.

        Of two renewals that crossed each other (on a connection that was thought dead, say) the hub may have kept the one and we the other.
        Neither is lost: each is tried in turn until one is taken.
        """
        if not (os.path.exists(self.last_certificate) and os.path.exists(self.last_key)):
            return False
        _link(self.last_key, self.next_key)
        _link(self.last_certificate, self.next_certificate)
        self._settle()
        return True

    def _check_pair(self, certificate: str, key: str, ca: str) -> None:
        import ssl
        import tempfile

        with tempfile.TemporaryDirectory(prefix="ckp-enrol-", dir=self.state_dir) as scratch:
            trial = os.path.join(scratch, "cert.pem")
            atomic_write(trial, certificate, mode=0o600)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_cert_chain(trial, key)
                if ca:
                    context.load_verify_locations(cadata=ca)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise EnrolmentFailed(
                    f"the hub's certificate for this host can't be used: {error}",
                    resolution="remove the host in Compass and enrol it again (ckp-agent enrol --again)",
                    reason="CertificateUnusable",
                ) from None

    def forget(self) -> None:
        """Drop certificate, ticket and key: the next enrolment is that of a new host."""
        for path in (self.next_certificate, self.next_key, self.last_certificate, self.last_key, self.certificate, self.ticket, self.about, self.ca, self.key):
            remove(path)


def _link(path: str, name: str) -> None:
    """A second name for a file, which replaces what had that name. It needs no room on a full disk."""
    temporary = name + ".new"
    remove(temporary)
    os.link(path, temporary)
    os.replace(temporary, name)


def _make_key(path: str) -> None:
    made = run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], timeout=60, what="making the host's key")
    atomic_write(path, made.stdout, mode=0o600)


def _csr(key: str) -> str:
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64] or "host"
    return run(["openssl", "req", "-new", "-sha256", "-key", key, "-subj", f"/CN={name}"], timeout=60, what="making the certificate request").stdout


def request(config: Config, method: str, path: str, *, body: str | None = None, token: str = "") -> tuple[int, Any, float]:
    """One HTTPS request to the hub, whose certificate must chain to the configured CA. Returns status, JSON and Retry-After (seconds, 0 if none).

    Raises:
        HubUnreachable: no connection, no answer in time.
        EnrolmentFailed: the other end is not the hub (its certificate does not chain to our CA).
    """
    import http.client
    import ssl

    parts = urlsplit(config.hub)
    context = ssl.create_default_context(cafile=config.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    headers = {"Accept": "application/json", "User-Agent": "ckp-agent"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=REQUEST_SECONDS, context=context)
    try:
        connection.request(method, parts.path.rstrip("/") + path, body=body.encode() if body is not None else None, headers=headers)
        answer = connection.getresponse()
        raw = answer.read(MAX_ANSWER)
        retry = answer.getheader("Retry-After") or "0"
    except ssl.SSLCertVerificationError as error:
        raise EnrolmentFailed(
            f"the server at {config.hub} is not our hub: {error.verify_message}",
            details=f"its certificate does not chain to {config.ca}, or is for another name",
            resolution="check `hub` and `ca` in the agent's config.json; the pre-shared key was not sent",
            reason="HubNotTrusted",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise HubUnreachable(f"the hub {config.hub} does not answer: {error}", resolution="it is asked again; check the network and the address") from None
    finally:
        connection.close()
    try:
        data = json.loads(raw) if raw else {}
    except ValueError:
        data = {}
    return answer.status, data, float(retry) if retry.isdigit() else 0.0


def _refusal(code: int, data: Any) -> EnrolmentFailed:
    said = data.get("error", {}) if isinstance(data, dict) else {}
    said = said if isinstance(said, dict) else {}
    message = str(said.get("message") or "")[:500]
    known = {
        401: ("WrongKey", "the hub does not accept the pre-shared key of this host", "put the project's current key into the psk file (ckp host psk get)"),
        403: ("WrongKey", "the hub refuses this host", "ask who runs the project"),
        409: (
            "IdentityTaken",
            "another host has this machine's identity already",
            "remove the other host in Compass, or give this machine its own /etc/machine-id",
        ),
        413: ("RequestRefused", "the hub refuses the request as too large", "report this with the agent's log"),
        422: ("RequestRefused", "the hub does not understand the request", "use an agent that fits the hub's version"),
        429: ("TooManyRequests", "the hub asks to slow down", "it is asked again later"),
    }
    reason, brief, resolution = known.get(code, ("HubError", f"the hub answers with status {code}", "it is asked again; see the hub's log"))
    return EnrolmentFailed(
        brief, details=message, resolution=str(said.get("resolution") or resolution)[:500], reason=reason, permanent=code in (401, 403, 409, 413, 422)
    )


def read_psk(config: Config) -> str:
    """The project's pre-shared key from its file. Raises EnrolmentFailed if it is missing, too short, or readable by others."""
    how = f"write the key that `ckp host psk get` shows into {config.psk_file} (mode 0600)"
    try:
        mode = os.stat(config.psk_file).st_mode
    except FileNotFoundError:
        raise EnrolmentFailed(f"there is no pre-shared key: {config.psk_file} is missing", resolution=how, reason="NoKey", permanent=True) from None
    if mode & 0o077:
        raise EnrolmentFailed(f"{config.psk_file} can be read by others", resolution=f"chmod 600 {config.psk_file}", reason="KeyExposed", permanent=True)
    psk = read_text(config.psk_file).strip()
    if not PSK_MIN <= len(psk) <= 256:
        raise EnrolmentFailed(f"{config.psk_file} holds no key of {PSK_MIN} to 256 characters", resolution=how, reason="NoKey", permanent=True)
    return psk


def apply(config: Config, identity: Identity, facts: messages.HostFacts) -> dict[str, str]:
    """Ask to be enrolled, once; the ticket is kept on disk, so that a restart asks for the outcome and not a second time.

    Raises:
        EnrolmentFailed, HubUnreachable: see request().
    """
    body = messages.EnrolmentRequest(psk=read_psk(config), facts=facts, csr=identity.make_csr(), domain=config.domain, project=config.project)
    code, data, _ = request(config, "POST", "/v1/enrolments", body=messages.to_json(body))
    if code not in (200, 201, 202):
        raise _refusal(code, data)
    ticket = messages.decode(messages.EnrolmentTicket, data)
    kept = {"hub": config.hub, "request_id": ticket.request_id, "token": ticket.token}
    atomic_write(identity.ticket, json.dumps(kept), mode=0o600)
    return kept


def enrol(config: Config, identity: Identity, facts: Callable[[], messages.HostFacts], status: Status, stop: threading.Event, *, once: bool = False) -> bool:
    """Get a certificate: ask, wait for a person's approval, store. Returns False if `stop` came first.

    Refusals that asking again can't change (wrong key, rejected, identity taken) are shown, and asked again only when the psk file or the
    configuration changes, so that a wrong key is not tried all day. With `once` such a refusal is raised.
    """
    backoff, polls = Backoff(1.0, 60.0), Backoff(2.0, 15.0, 1.3)
    while not stop.is_set():
        try:
            if _enrol_step(config, identity, facts, status):
                remove(config.psk_file)
                status.set("enrolment", "Approved", f"this host is {identity.host}")
                log(f"enrolment approved: this host is {identity.host}")
                return True
            delay = polls.delay()
            backoff.reset()
        except (EnrolmentFailed, HubUnreachable) as error:
            if status.set("enrolment", error.reason, error.sentence()):
                log(error.render())
            if error.permanent:
                if once:
                    raise
                _wait_for_change(config, stop)
                polls.reset()
                continue
            delay = backoff.delay()
        except messages.MalformedMessage as error:
            status.set("enrolment", "HubError", f"the hub's answer can't be understood: {error}")
            delay = backoff.delay()
        stop.wait(delay)
    return False


def _enrol_step(config: Config, identity: Identity, facts: Callable[[], messages.HostFacts], status: Status) -> bool:
    """Ask or poll once; True when the certificate is stored."""
    try:
        kept = json.loads(read_text(identity.ticket, "{}"))
    except ValueError:
        kept = {}
    if kept.get("hub") != config.hub or not kept.get("request_id") or not kept.get("token"):
        kept = apply(config, identity, facts())
        log(f"enrolment requested (request {kept['request_id']}), waiting for approval")
    code, data, _ = request(config, "GET", f"/v1/enrolments/{kept['request_id']}", token=kept["token"])
    if code in (401, 403, 404, 410):
        remove(identity.ticket)  # the hub knows nothing of it any more: ask again
        raise HubUnreachable(f"the hub no longer knows the enrolment request {kept['request_id']}", resolution="a new one is made")
    if code != 200:
        raise _refusal(code, data)
    answer = messages.decode(messages.EnrolmentStatus, data)
    if answer.state == "approved":
        identity.store(answer, config.ca)
        return True
    if answer.state == "rejected":
        remove(identity.ticket)
        raise EnrolmentFailed(
            "the enrolment of this host was rejected",
            details=answer.reason,
            resolution="ask who runs the project; then write the pre-shared key again or run `ckp-agent enrol --again`",
            reason="Rejected",
            permanent=True,
        )
    status.set("enrolment", "Pending", f"request {kept['request_id']} waits for approval (ckp host approve)")
    return False


def _wait_for_change(config: Config, stop: threading.Event) -> None:
    def stamp() -> tuple[float, ...]:
        found = []
        for path in (config.psk_file, config.ca, os.path.join(os.path.dirname(config.psk_file), "config.json")):
            try:
                found.append(os.stat(path).st_mtime)
            except OSError:
                found.append(0.0)
        return tuple(found)

    before = stamp()
    while not stop.wait(2.0):
        if stamp() != before:
            return
