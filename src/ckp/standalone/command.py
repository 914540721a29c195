"""`ckp-agent standalone install|join|token|remove-node|reset|status|address`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Callable, Sequence

if TYPE_CHECKING:
    from ckp.standalone.options import Options


def parser() -> argparse.ArgumentParser:
    """The command line of `standalone`."""
    from ckp.hostkit.locations import STATE_DIR
    from ckp.standalone.address.service import SETTINGS
    from ckp.standalone.options import Options

    default = Options()
    top = argparse.ArgumentParser(prog="ckp-agent standalone", description="Make this host a CKP cluster of its own, or a part of one, or undo it.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    install = commands.add_parser("install", help="install a cluster in twelve steps; a second run continues an interrupted one")
    join = commands.add_parser("join", help="join a standalone cluster as a worker or a further master; a second run continues an interrupted one")
    for command in (install, join):
        command.add_argument("--bundle", dest="bundle_folder", default="", metavar="FOLDER", help="folder with a pulled bundle")
        command.add_argument("--bundle-image", default="", metavar="REF", help="bundle in a registry, by digest (host/repository@sha256:…)")
        command.add_argument("--registry-ca", dest="registry_ca_file", default="", metavar="FILE", help="CA of the registry (default: the system's CAs)")
        command.add_argument("--keyring", default=default.keyring, help="trusted OpenPGP keys (default: %(default)s)")
        command.add_argument("--imgpkg", default=default.imgpkg, help="the imgpkg program, for --bundle-image (default: %(default)s)")
        command.add_argument("--advertise-address", default="", metavar="IP", help="address of this host in the cluster (default: that of the default route)")
        command.add_argument("--node-name", default="", help="name of the node (default: the host name)")
        command.add_argument("--registry", default="", metavar="HOST[:PORT]/PATH", help="pull images from here instead of the bundle's own registry")
        command.add_argument("--release", default="", help="the release that the bundle must be of (v1.35.1)")
        command.add_argument("--host-json", default=default.host_json, help="file with overrides for this host (default: %(default)s)")
    install.add_argument("--pod-cidr", default=default.pod_cidr, help="address range of the pods (default: %(default)s)")
    install.add_argument("--service-cidr", default=default.service_cidr, help="address range of the services (default: %(default)s)")
    install.add_argument("--cni", default=default.cni, help="network plugin: cilium (default: %(default)s)")
    install.add_argument(
        "--virtual-address", default="", metavar="IPV4", help="free address of the hosts' network, for a cluster of several masters: one of them holds it"
    )
    install.add_argument(
        "--cert-san", dest="cert_sans", action="append", default=[], metavar="NAME_OR_IP", help="a further name of the API servers; may be repeated"
    )
    join.add_argument("--control-plane", action="store_true", help="as a further master (default: as a worker)")
    join.add_argument("--token-file", default="-", metavar="FILE", help="file with the join token; - is standard input (default: %(default)s)")
    token = commands.add_parser("token", help="tokens by which other hosts join this cluster")
    create = token.add_subparsers(dest="token_command", metavar="COMMAND", required=True).add_parser(
        "create", help="make a token, on a master, and print it: it is a secret"
    )
    create.add_argument("--control-plane", action="store_true", help="for a further master (default: for workers)")
    create.add_argument("--ttl", default="1h", help="how long it is valid, such as 30m (default: %(default)s)")
    remove = commands.add_parser("remove-node", help="remove a lost host from this cluster, and from its etcd; on a master")
    remove.add_argument("name", metavar="NAME", help="of the node; or the address of a master that never came up")
    remove.add_argument("--force", action="store_true", help="also a node that is Ready")
    registry = commands.add_parser("registry", help="let containerd have another CA or login for the registry that this cluster was made from")
    registry.add_argument("--registry-ca", dest="registry_ca_file", default="", metavar="FILE", help="CA of the registry (default: the system's CAs)")
    reset = commands.add_parser("reset", help="undo an installation or a join, complete or not; a master of several leaves its cluster first")
    reset.add_argument("--force", action="store_true", help="reset the host even if there is no record of an installation")
    status = commands.add_parser("status", help="show what this host is, and which steps are done")
    address = commands.add_parser("address", help="hold the virtual address when it is this host's turn (for ckp-virtual-address.service)")
    address.add_argument("--settings", default=SETTINGS, metavar="FILE", help="(default: %(default)s)")
    for command in (install, join, create, remove, registry, reset, status):
        command.add_argument("--state-dir", default=STATE_DIR, help="folder of the journal (default: %(default)s)")
    return top


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of an installation or a join; what a command does not have is as by default."""
    from ckp.standalone.options import Options

    given = {name: value for name, value in vars(arguments).items() if name in Options.__dataclass_fields__}
    return Options(**{**given, "cert_sans": tuple(given.get("cert_sans", ()))})


def standalone(argv: Sequence[str]) -> int:
    """Run `ckp-agent standalone …`; returns the exit code."""
    from ckp.hostkit.errors import AgentError

    arguments = parser().parse_args(argv)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "install": _install,
        "join": _join,
        "token": _token,
        "remove-node": _remove_node,
        "registry": _registry,
        "reset": _reset,
        "status": _status,
        "address": _address,
    }
    try:
        return commands[arguments.command](arguments)
    except AgentError as error:
        sys.stdout.flush()
        sys.stderr.write(error.render() + "\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command continues with this step\n")
        return 130


def _install(arguments: argparse.Namespace) -> int:
    from ckp.standalone.install import install

    install(options_of(arguments))
    return 0


def _join(arguments: argparse.Namespace) -> int:
    from ckp.standalone.join import join, read_token

    join(options_of(arguments), read_token(arguments.token_file), control_plane=arguments.control_plane)
    return 0


def _token(arguments: argparse.Namespace) -> int:
    from ckp.standalone.install import journal_of
    from ckp.standalone.token import create, encode

    print(encode(create(journal_of(arguments.state_dir), control_plane=arguments.control_plane, ttl=arguments.ttl)))
    return 0


def _remove_node(arguments: argparse.Namespace) -> int:
    from ckp.standalone.install import journal_of
    from ckp.standalone.members import remove_node

    remove_node(journal_of(arguments.state_dir), arguments.name, force=arguments.force, say=print)
    return 0


def _registry(arguments: argparse.Namespace) -> int:
    from ckp.standalone.install import journal_of
    from ckp.standalone.registry import change_access

    for line in change_access(journal_of(arguments.state_dir), arguments.registry_ca_file):
        print(line)
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    from ckp.standalone.install import reset

    reset(arguments.state_dir, force=arguments.force)
    return 0


def _address(arguments: argparse.Namespace) -> int:
    from ckp.standalone.address.service import serve

    serve(arguments.settings)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from ckp.agent.system import holds
    from ckp.agent.system.installers.detect import of_host
    from ckp.standalone.address.network import link_of
    from ckp.standalone.install import journal_of
    from ckp.standalone.join import plan_of
    from ckp.standalone.options import FIRST, WORKER

    journal = journal_of(arguments.state_dir)
    if journal.member is None:
        print("this host is not a standalone cluster")
        return 1
    settings = journal.member.settings
    role = settings.get("role", FIRST)
    steps = plan_of(role)
    for number, step in enumerate(steps, 1):
        print(f"[{number:>2}/{len(steps)}] {step.title}: {'done' if step.name in journal.done else 'to do'}")
    print(f"  role: {'worker' if role == WORKER else 'master, of which the cluster was made' if role == FIRST else 'master, which has joined'}")
    if address := settings.get("virtual_address", ""):
        held = role != WORKER and link_of(address) is not None
        print(f"  virtual address: {address}, {'held by this host' if held else 'not held by this host'}")
    for line in holds.changed(journal, of_host()):
        print(f"  {line}")
    return 0 if all(step.name in journal.done for step in steps) else 1
