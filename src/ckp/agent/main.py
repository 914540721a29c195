"""`ckp-agent`: run | enrol | status | settings | verify | facts; and pull | upgrade-guard, which the agent itself starts.

(`ckp-agent standalone …` is in ckp.standalone, `ckp-agent preflight|backup` in ckp.hosttool, which chooses between them.)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Sequence

from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.locations import CONFIG_DIR, IMGPKG, SITE_KEYRING, SITE_SETTINGS, STATE_DIR
from ckp.hostkit.logs import log

if TYPE_CHECKING:
    from ckp.agent.config import Config

STACK_BYTES = 512 << 10
REEXECUTED = "CKP_AGENT_ENROLLED"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="ckp-agent", description="CKP's host agent. It connects to the hub, and makes this host a node of a cluster, or a free host again."
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in (
        ("run", "run the agent, as its systemd unit does; enrols first if needed"),
        ("enrol", "request this host's identity from the hub, and wait for approval"),
        ("status", "show the state of enrolment, channel and work"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", default=CONFIG_DIR + "/config.json", help="settings file (default: %(default)s)")
        if name == "enrol":
            command.add_argument("--again", action="store_true", help="delete the present identity and key first")
        if name == "status":
            command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    verify = commands.add_parser("verify", help="verify a bundle, a repository or packages", description="Verify a bundle, a repository, or packages.")
    verify.add_argument("target", help="a .deb or .rpm, the folder of a bundle, a repository, or a folder of packages")
    verify.add_argument("--keyring", default="", help=f"trusted OpenPGP keys (default: the site's, {SITE_KEYRING}; without them, those of this package)")
    verify.add_argument("--release", help="the release that a bundle must be of (v1.35.1)")
    settings = commands.add_parser("settings", help="apply or remove what the site gives to this host: keys, CAs, proxy, name and time servers")
    settings.add_argument("action", choices=("check", "apply", "remove"))
    settings.add_argument("--file", default=SITE_SETTINGS, help="the settings to check or apply; - for standard input (default: %(default)s)")
    facts = commands.add_parser("facts", help="print this host's facts", description="Print what this host reports about itself, as JSON.")
    facts.set_defaults(command="facts")
    guard = commands.add_parser("upgrade-guard", help="complete an upgrade of the agent, or roll it back (run by ckp-agent-upgrade.service)")
    guard.add_argument("--state-dir", default=STATE_DIR, help=argparse.SUPPRESS)
    fetch = commands.add_parser("pull", help="pull an image by digest into a folder; resumes an earlier attempt")
    fetch.add_argument("image", help="host/repository@sha256:…")
    fetch.add_argument("--output", required=True, help="the folder to create")
    fetch.add_argument("--blobs", required=True, help="folder for downloaded blobs, which a later attempt reuses")
    fetch.add_argument("--ca", default="", help="CA of the registry (default: the system's CAs)")
    fetch.add_argument("--imgpkg", default=IMGPKG, help="(default: %(default)s)")
    commands.add_parser("backup", help="make a backup of the site that this is a management host of, if one is due (see: ckp-agent backup --help)")
    commands.add_parser("preflight", help="show what speaks against this host's becoming a node (see: ckp-agent preflight --help)")
    commands.add_parser("standalone", help="make this host a cluster of its own, or undo it (see: ckp-agent standalone --help)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error is printed to standard error. Returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return _dispatch(arguments)
    except AgentError as error:
        sys.stderr.write(error.render() + "\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: argparse.Namespace) -> int:
    from ckp.agent.system import facts

    if arguments.version:
        print(facts.version())
    elif arguments.command == "verify":
        from ckp.agent.config import DEFAULT_KEYRING
        from ckp.verify.path import verify_command

        keyring = arguments.keyring or (SITE_KEYRING if os.path.exists(SITE_KEYRING) else DEFAULT_KEYRING)
        verify_command(arguments.target, keyring, arguments.release)
    elif arguments.command == "settings":
        return _settings(arguments.action, arguments.file)
    elif arguments.command == "facts":
        from dataclasses import asdict

        from ckp.agent.node.inventory import host_facts

        print(json.dumps(asdict(host_facts()), indent=2))
    elif arguments.command == "pull":
        from ckp.agent.fetch.pull import pull

        print(pull(arguments.imgpkg, arguments.image, arguments.ca, arguments.blobs, arguments.output))
    elif arguments.command == "upgrade-guard":
        from ckp.agent.upgrade import Upgrades, install_file, restart_agent

        print(Upgrades(arguments.state_dir).watch(install_file, restart_agent))
    elif arguments.command == "status":
        return _status(arguments)
    elif arguments.command in ("run", "enrol"):
        from ckp.agent.config import load

        config = load(arguments.config)
        return _enrol(config, arguments.again) if arguments.command == "enrol" else _run(config)
    else:
        parser().print_help()
        return 2
    return 0


def _settings(action: str, path: str) -> int:
    from ckp.agent.system import site_settings

    text = ""
    if action != "remove":
        try:
            with open(path, encoding="utf-8") if path != "-" else sys.stdin as stream:
                text = stream.read()
        except OSError as error:
            raise InvalidInput(f"{path} can't be read: {error.strerror}", resolution="name the file with the site's settings: --file") from None
    if action == "check":
        found = site_settings.problems(site_settings.parse(text))
        for what, remedy in found:
            print(f"error: {what}: {remedy}")
        return 2 if found else 0
    for line in site_settings.apply(text):
        print(line, flush=True)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from ckp.agent.config import load
    from ckp.agent.hub.identity import Identity
    from ckp.agent.hub.status import Status

    config = load(arguments.config)
    status, identity = Status(config.state_dir), Identity(config.state_dir)
    if arguments.output == "json":
        print(json.dumps({"host": identity.host, "enrolled": identity.enrolled, "topics": status.topics}, indent=2))
    else:
        print(f"host:       {identity.host or 'not enrolled yet'}")
        print(status.render())
    return 0


def _enrol(config: Config, again: bool) -> int:
    from ckp.agent.hub.enrol import enrol
    from ckp.agent.hub.identity import Identity
    from ckp.agent.hub.status import Status
    from ckp.agent.system import facts

    identity = Identity(config.state_dir)
    if again:
        identity.forget()
    if identity.enrolled:
        log(f"this host is enrolled already, as {identity.host}")
        return 0
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return 0 if enrol(config, identity, lambda: facts.host_facts(config.hub_host), Status(config.state_dir), stop, once=True) else 1


def _run(config: Config) -> int:
    """The service: enrol, then run a worker thread and the channel. On SIGTERM it ends after the present step."""
    os.umask(0o077)
    os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
    threading.stack_size(STACK_BYTES)
    from ckp.agent.hub.enrol import enrol
    from ckp.agent.hub.identity import Identity
    from ckp.agent.hub.status import Status
    from ckp.agent.system import facts

    identity, status = Identity(config.state_dir), Status(config.state_dir)
    stop = threading.Event()
    if not identity.enrolled:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        if not enrol(config, identity, lambda: facts.host_facts(config.hub_host), status, stop):
            return 0
        if os.environ.get(REEXECUTED) != "1" and os.path.isfile(sys.argv[0]) and not sys.argv[0].endswith(".py"):
            # the HTTP libraries are no longer needed: re-execute without them, so that the agent stays small for months
            os.environ[REEXECUTED] = "1"
            os.execv(sys.executable, [sys.executable, "-I", *sys.argv])  # noqa: S606
    from ckp.agent import messages
    from ckp.agent.hub.channel import Channel
    from ckp.agent.journal import Journal
    from ckp.agent.node import inventory
    from ckp.agent.node.actions import HostActions
    from ckp.agent.node.engine import Engine
    from ckp.agent.node.upgrade import Upgrades

    journal = Journal(os.path.join(config.state_dir, "journal.json"), os.path.join(config.state_dir, "saved"))
    actions = HostActions(config, journal)
    engine = Engine(journal, actions, upgrades=Upgrades(journal, actions.node_upgrade))

    def hello() -> messages.Hello:
        return messages.Hello(boot_id=facts.boot_id(), facts=inventory.host_facts(config.hub_host, journal, actions.version))

    channel = Channel(config.channel, identity, config.ca, engine, status, hello, confirm=lambda: actions.upgrades.confirm(actions.version))

    def terminate(*_: object) -> None:
        # in threads: a signal handler must not wait for locks that the interrupted code may hold
        for end in (engine.stop, channel.close):
            threading.Thread(target=end, daemon=True).start()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    threading.Thread(target=_watch_work, args=(engine, status, channel.stop), name="status", daemon=True).start()
    worker = threading.Thread(target=engine.run, name="engine", daemon=True)
    worker.start()
    log(f"ckp-agent {actions.version} runs as host {identity.host} with the hub {config.channel}")
    channel.run()
    worker.join()
    return 0


def _watch_work(engine: object, status: object, closed: threading.Event) -> None:
    """Keep the topic `work` of `ckp-agent status` current."""
    from ckp.agent.hub.status import Status
    from ckp.agent.node.engine import Engine

    assert isinstance(engine, Engine) and isinstance(status, Status)
    while not closed.is_set():
        report, version = engine.report()
        where = f"{report.cluster} {report.machine} {report.release}".strip()
        failing = f"{report.reason}: {report.message} (attempt {report.attempts})" if report.reason else ""
        status.set("work", report.phase, "; ".join(part for part in (where, failing) if part))
        engine.wait_change(version, 3600.0, closed)
