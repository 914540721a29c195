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
import json, os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]), file=sys.stderr)
"""
"""A small process between: the kernel counts the memory of a program's parent, before its exec, as the program's own."""


@dataclass(frozen=True)
class Cost:
    """CPU time (user and system) in seconds, the largest resident memory of any process in MiB, and what the call said."""

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
    code, cpu_seconds, memory_mib = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr.decode(errors="replace")
    return Cost(cpu_seconds, memory_mib, done.stdout.decode().strip())
