"""What a call costs, measured by the kernel for a process of its own with all that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

CALL = """
import importlib, json, sys
module, name, arguments = json.loads(sys.argv[1])
function = getattr(importlib.import_module(module), name)
from ckp.hostkit.errors import AgentError
from ckp.kits.errors import CkpError
try:
    function(*arguments)
    print("accepted")
except (AgentError, CkpError) as error:
    print(error.render())
"""
MEASURE = """
import json, os, sys, time
def reference():
    begun = time.process_time()
    sum(number * number for number in range(500_000))
    return time.process_time() - begun
before = reference()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
slow = (before + reference()) / 2
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, slow]), file=sys.stderr)
"""
"""A small process between: the kernel counts the memory of a program's parent, before its exec, as the program's own. It also finds out how slow a
second of this machine is just now: where others use the same cores, a second of CPU time does a third of the work."""
REFERENCE_SECONDS = 0.03
"""What the reference takes on an idle core of a server of today; limits are written for such a one."""


@dataclass(frozen=True)
class Cost:
    """CPU time (user and system) in seconds of an idle core (REFERENCE_SECONDS), the largest resident memory of any process in MiB, and what the call said."""

    cpu_seconds: float
    memory_mib: float
    said: str


def cost(module: str, function: str, *arguments: object) -> Cost:
    """Call a function in a process of its own, with arguments that JSON can carry. Its errors for people are said; any other fails here."""
    return cost_of_program(CALL, json.dumps([module, function, arguments]))


def cost_of_program(program: str, *arguments: str) -> Cost:
    """Run a Python program, with its arguments; what it says is what it prints. One that fails, fails here."""
    argv = [sys.executable, "-S", "-c", MEASURE, sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(argv, capture_output=True, check=True, timeout=300, env=environment)
    code, cpu_seconds, memory_mib, reference = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr.decode(errors="replace")
    return Cost(cpu_seconds * min(1.0, REFERENCE_SECONDS / reference), memory_mib, done.stdout.decode().strip())
