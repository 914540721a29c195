"""`ckp-agent preflight`: what this host is, and what speaks against its becoming a node or a management host. Nothing is changed.

`ckp site check` runs it on hosts that have nothing of CKP yet: it sends this tool's code, which is loaded from memory there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any, Dict, List, Sequence

from ckp.agent.journal import Journal
from ckp.agent.messages import Finding
from ckp.agent.node import inventory, preflight
from ckp.agent.system import firewall
from ckp.agent.system.installers.detect import of_host
from ckp.agent.system.prepare import HOST_JSON
from ckp.hostkit.errors import AgentError
from ckp.hostkit.locations import STATE_DIR
from ckp.standalone import checks, steps
from ckp.standalone.install import journal_of
from ckp.standalone.options import CONTROL_PLANE, POD_CIDR, SERVICE_CIDR, Options
from ckp.standalone.options import WORKER as NODE

MANAGEMENT, WORKER = "management", "worker"
WORKER_PORTS = (10250,)


def survey(
    role: str,
    *,
    pods: str = POD_CIDR,
    services: str = SERVICE_CIDR,
    address: str = "",
    several: bool = False,
    host_json: str = HOST_JSON,
    wanted: Sequence[int] = (),
    state_dir: str = STATE_DIR,
) -> Dict[str, Any]:
    """What a site needs to know of this host before anything is changed.

    Args:
        role: MANAGEMENT or WORKER.
        pods: network of the management cluster's pods; for that role alone, as are `services`, `address`, `several` and `host_json`.
        address: by which others reach this host.
        several: the management cluster is to have several hosts, and the installer opens the ports of etcd as well.
        host_json: file with the settings that this host is to get.
        wanted: further TCP ports that something is to listen on.

    Returns:
        facts: the HostFacts.
        findings: what speaks against the role, as a list of Finding.
        member: what it is a member of already, or "".
        ports: TCP ports that it will listen on, all and those that other hosts must reach.
        listening: TCP ports that something listens on now.
        owners: those of `wanted` that something listens on -> what that is.
        firewalls: those that are on and that the installer opens ports in, by name; and which ports those are.
    """
    found: List[Finding] = []
    member = ""
    try:
        journal = journal_of(state_dir) if role == MANAGEMENT else Journal(os.path.join(state_dir, "journal.json"), os.path.join(state_dir, "saved"))
        member = journal.member.cluster or journal.member.key if journal.member else ""
        installer = of_host()
        if role == MANAGEMENT:
            found = checks.preflight_findings(
                Options(pod_cidr=pods, service_cidr=services, advertise_address=address, host_json=host_json, state_dir=state_dir), journal, installer
            ).items
        else:
            found = preflight.worker(journal, installer).items
    except AgentError as error:
        found = [Finding(error.brief, error.resolution or "use a host that CKP supports")]
    ports = checks.PORTS if role == MANAGEMENT else WORKER_PORTS
    listening = preflight.listeners()
    opened = steps.ports_of(CONTROL_PLANE if role == MANAGEMENT else NODE, several)
    return {
        "facts": asdict(inventory.host_facts()),
        "findings": [asdict(item) for item in found],
        "member": member,
        "ports": [*ports],
        "ports_between": [port for port in ports if port not in checks.LOCAL_PORTS],
        "listening": sorted(listening),
        "owners": {str(port): preflight.owner_of(port) for port in wanted if port in listening},
        "firewalls": [each.name for each in firewall.active()],
        "opened": [f"{port.ports}/{port.protocol}" for port in opened],
    }


def command(argv: Sequence[str]) -> int:
    """Run `ckp-agent preflight …`; returns 0 without a blocking finding, and 2 with one."""
    top = argparse.ArgumentParser(prog="ckp-agent preflight", description="Show what speaks against this host's becoming a node. Nothing is changed.")
    top.add_argument("--role", choices=(WORKER, MANAGEMENT), default=WORKER, help="what it is to become (default: %(default)s)")
    top.add_argument("--state-dir", default=STATE_DIR, help="folder of the journal (default: %(default)s)")
    top.add_argument("-o", "--output", choices=("text", "json"), default="text")
    arguments = top.parse_args(argv)
    found = survey(arguments.role, state_dir=arguments.state_dir)
    findings: List[Dict[str, Any]] = found["findings"]
    if arguments.output == "json":
        print(json.dumps(found, indent=2))
    else:
        for item in findings:
            print(f"{'error' if item['blocking'] else 'note'}: {item['problem']}: {item['remediation']}")
        if not findings:
            print("nothing speaks against it")
    sys.stdout.flush()
    return 2 if any(item["blocking"] for item in findings) else 0
