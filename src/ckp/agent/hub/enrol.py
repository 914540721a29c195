"""Enrolment: the request with the pre-shared key, the wait for approval, and the certificate."""

from __future__ import annotations

import json
import os
import threading
from typing import Callable

from ckp.agent import messages
from ckp.agent.config import Config
from ckp.agent.hub.backoff import Backoff
from ckp.agent.hub.errors import EnrolmentFailed, HubUnreachable, refusal
from ckp.agent.hub.http import request
from ckp.agent.hub.identity import Identity
from ckp.agent.hub.status import Status
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.logs import log

PSK_MIN = 16


def read_psk(config: Config) -> str:
    """The project's pre-shared key from its file. EnrolmentFailed if it is missing, too short, or readable by other users."""
    how = f"write the project's key into {config.psk_file}, mode 0600 (`ckp host psk` shows it once; with --reset it makes a new one)"
    try:
        mode = os.stat(config.psk_file).st_mode
    except FileNotFoundError:
        raise EnrolmentFailed(f"the pre-shared key {config.psk_file} is missing", resolution=how, reason="NoKey", permanent=True) from None
    if mode & 0o077:
        raise EnrolmentFailed(f"{config.psk_file} is readable by other users", resolution=f"chmod 600 {config.psk_file}", reason="KeyExposed", permanent=True)
    psk = read_text(config.psk_file).strip()
    if not PSK_MIN <= len(psk) <= 256:
        raise EnrolmentFailed(f"{config.psk_file} does not hold a key of {PSK_MIN} to 256 characters", resolution=how, reason="NoKey", permanent=True)
    return psk


def apply(config: Config, identity: Identity, facts: messages.HostFacts) -> dict[str, str]:
    """Request enrolment. The ticket is kept on disk, so that a restarted agent asks for the outcome instead of making a second request.

    Raises:
        EnrolmentFailed: the hub rejects the request, or is not the configured hub.
        HubUnreachable: see request().
    """
    body = messages.EnrolmentRequest(psk=read_psk(config), facts=facts, csr=identity.make_csr(), domain=config.domain, project=config.project)
    code, data, _ = request(config, "POST", "/v1/enrolments", body=messages.to_json(body))
    if code not in (200, 201, 202):
        raise refusal(code, data)
    ticket = messages.decode(messages.EnrolmentTicket, data)
    kept = {**_asked(config), "request_id": ticket.request_id, "token": ticket.token}
    atomic_write(identity.ticket, json.dumps(kept), mode=0o600)
    return kept


def _asked(config: Config) -> dict[str, str]:
    """What a request was made to: a ticket is for nothing else."""
    return {"hub": config.hub, "domain": config.domain, "project": config.project}


def enrol(config: Config, identity: Identity, facts: Callable[[], messages.HostFacts], status: Status, stop: threading.Event, *, once: bool = False) -> bool:
    """Get a certificate: request it, wait for approval, and store it. Returns False if `stop` was set first.

    A permanent refusal (wrong key, rejected, identity taken) is shown, and the request is repeated only after the psk file or the
    configuration has changed, so that a wrong key is not tried over and over. With `once` such a refusal is raised as EnrolmentFailed.
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
            status.set("enrolment", "HubError", f"the hub's answer is malformed: {error}")
            delay = backoff.delay()
        stop.wait(delay)
    return False


def _enrol_step(config: Config, identity: Identity, facts: Callable[[], messages.HostFacts], status: Status) -> bool:
    """Make or poll the request once; True when the certificate is stored."""
    try:
        kept = json.loads(read_text(identity.ticket, "{}"))
    except ValueError:
        kept = {}
    # Earlier agents kept the hub alone.
    other = any(kept.get(name, value) != value for name, value in _asked(config).items())
    if other or not kept.get("request_id") or not kept.get("token"):
        kept = apply(config, identity, facts())
        log(f"enrolment requested (request {kept['request_id']}), waiting for approval")
    code, data, _ = request(config, "GET", f"/v1/enrolments/{kept['request_id']}", token=kept["token"])
    if code in (401, 403, 404, 410):
        remove(identity.ticket)  # the hub no longer knows it: make a new request
        raise HubUnreachable(f"the hub no longer knows the enrolment request {kept['request_id']}", resolution="the agent makes a new one")
    if code != 200:
        raise refusal(code, data)
    answer = messages.decode(messages.EnrolmentStatus, data)
    if answer.state == "approved":
        identity.store(answer, config.ca)
        return True
    if answer.state == "rejected":
        remove(identity.ticket)
        raise EnrolmentFailed(
            "the enrolment of this host was rejected",
            details=answer.reason,
            resolution="ask the administrator of the project; then write the pre-shared key again or run `ckp-agent enrol --again`",
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
