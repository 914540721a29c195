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
    top = argparse.ArgumentParser(prog="ckp-agent standalone", description="Make this one host a CKP cluster, or undo it.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    install = commands.add_parser("install", help="the twelve steps; a second run goes on where the first one ended")
    install.add_argument("--bundle", dest="bundle_folder", default="", metavar="FOLDER", help="folder of a pulled bundle")
    install.add_argument("--bundle-image", default="", metavar="REF", help="bundle in a registry, by digest (…@sha256:…)")
    install.add_argument("--registry-ca", dest="registry_ca_file", default="", metavar="FILE", help="CA of the registry (default: the system's)")
    install.add_argument("--keyring", default=default.keyring, help="trusted OpenPGP keys (default: %(default)s)")
    install.add_argument("--imgpkg", default=default.imgpkg, help="imgpkg, for --bundle-image (default: %(default)s)")
    install.add_argument("--pod-cidr", default=default.pod_cidr, help="network of the pods (default: %(default)s)")
    install.add_argument("--service-cidr", default=default.service_cidr, help="network of the services (default: %(default)s)")
    install.add_argument("--advertise-address", default="", metavar="IP", help="address of the API server (default: that of the default route)")
    install.add_argument("--node-name", default="", help="name of the node (default: the host name)")
    install.add_argument("--cni", default=default.cni, help="network: cilium (default: %(default)s)")
    install.add_argument("--registry", default="", metavar="HOST[:PORT]/PATH", help="take images from there instead of the bundle's own registry")
    install.add_argument("--release", default="", help="refuse another release than this (v1.35.1)")
    install.add_argument("--host-json", default=default.host_json, help="overrides for this host (default: %(default)s)")
    reset = commands.add_parser("reset", help="undo an installation, whole or half")
    reset.add_argument("--force", action="store_true", help="clean the host even if no installation is known")
    status = commands.add_parser("status", help="which steps are done")
    for command in (install, reset, status):
        command.add_argument("--state-dir", default=STATE_DIR, help="where the journal lies (default: %(default)s)")
    return top


def standalone(argv: Sequence[str]) -> int:
    """`ckp-agent standalone …`."""
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
        sys.stderr.write("\ninterrupted; the same command goes on with this step\n")
        return 130
    return 0


def _status(state_dir: str) -> int:
    from ckp.standalone.install import journal_of
    from ckp.standalone.steps import STEPS

    journal = journal_of(state_dir)
    if journal.member is None:
        print("this host is no standalone cluster")
        return 1
    for number, step in enumerate(STEPS, 1):
        print(f"[{number:>2}/{len(STEPS)}] {step.title}: {'done' if step.name in journal.done else 'to do'}")
    return 0 if all(step.name in journal.done for step in STEPS) else 1
