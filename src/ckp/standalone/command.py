"""`ckp-agent standalone install|reset|status`."""

from __future__ import annotations

import argparse
import sys
from typing import Sequence


def parser() -> argparse.ArgumentParser:
    """The command line of `standalone`."""
    from ckp.hostkit.locations import STATE_DIR
    from ckp.standalone.options import Options

    default = Options()
    top = argparse.ArgumentParser(prog="ckp-agent standalone", description="Make this host a CKP cluster of its own, or undo it.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    install = commands.add_parser("install", help="install a cluster in twelve steps; a second run continues an interrupted one")
    install.add_argument("--bundle", dest="bundle_folder", default="", metavar="FOLDER", help="folder with a pulled bundle")
    install.add_argument("--bundle-image", default="", metavar="REF", help="bundle in a registry, by digest (host/repository@sha256:…)")
    install.add_argument("--registry-ca", dest="registry_ca_file", default="", metavar="FILE", help="CA of the registry (default: the system's CAs)")
    install.add_argument("--keyring", default=default.keyring, help="trusted OpenPGP keys (default: %(default)s)")
    install.add_argument("--imgpkg", default=default.imgpkg, help="the imgpkg program, for --bundle-image (default: %(default)s)")
    install.add_argument("--pod-cidr", default=default.pod_cidr, help="address range of the pods (default: %(default)s)")
    install.add_argument("--service-cidr", default=default.service_cidr, help="address range of the services (default: %(default)s)")
    install.add_argument("--advertise-address", default="", metavar="IP", help="address of the API server (default: that of the default route)")
    install.add_argument("--node-name", default="", help="name of the node (default: the host name)")
    install.add_argument("--cni", default=default.cni, help="network plugin: cilium (default: %(default)s)")
    install.add_argument("--registry", default="", metavar="HOST[:PORT]/PATH", help="pull images from here instead of the bundle's own registry")
    install.add_argument("--release", default="", help="the release that the bundle must be of (v1.35.1)")
    install.add_argument("--host-json", default=default.host_json, help="file with overrides for this host (default: %(default)s)")
    reset = commands.add_parser("reset", help="undo an installation, complete or not")
    reset.add_argument("--force", action="store_true", help="reset the host even if there is no record of an installation")
    status = commands.add_parser("status", help="show which steps are done")
    for command in (install, reset, status):
        command.add_argument("--state-dir", default=STATE_DIR, help="folder of the journal (default: %(default)s)")
    return top


def standalone(argv: Sequence[str]) -> int:
    """Run `ckp-agent standalone …`; returns the exit code."""
    from ckp.hostkit.errors import AgentError

    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "install":
            from ckp.standalone.install import install
            from ckp.standalone.options import Options

            install(Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__}))
        elif arguments.command == "reset":
            from ckp.standalone.install import reset

            reset(arguments.state_dir, force=arguments.force)
        else:
            return _status(arguments.state_dir)
    except AgentError as error:
        sys.stdout.flush()
        sys.stderr.write(error.render() + "\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command continues with this step\n")
        return 130
    return 0


def _status(state_dir: str) -> int:
    from ckp.agent.system import holds
    from ckp.agent.system.installers.detect import of_host
    from ckp.standalone.install import journal_of
    from ckp.standalone.steps import STEPS

    journal = journal_of(state_dir)
    if journal.member is None:
        print("this host is not a standalone cluster")
        return 1
    for number, step in enumerate(STEPS, 1):
        print(f"[{number:>2}/{len(STEPS)}] {step.title}: {'done' if step.name in journal.done else 'to do'}")
    for line in holds.changed(journal, of_host()):
        print(f"  {line}")
    return 0 if all(step.name in journal.done for step in STEPS) else 1
