"""`ckp --help` and completion import no command; what they print of commands is what the commands themselves have to say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from packaging.utils import canonicalize_name

from ckp.cli.distribution import group
from ckp.cli.lazy import Lazy, LazyGroup
from ckp.cli.main import COMMANDS, root
from tests.support.checkout import REPO
from tests.unit.cli.test_dependencies import EXTRAS, PROJECT, names

HEAVY = ("cryptography", "httpx", "lightkube", "pydantic", "pysequoia", "yaml")
OURS = ("ckp.catalog", "ckp.clients", "ckp.compass", "ckp.distribution", "ckp.lab", "ckp.site")
RUN = "import sys\nfrom ckp.cli.main import main\ntry:\n    main()\nfinally:\n    print('MODULES', *sys.modules, file=sys.stderr)\n"


def run(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """What `ckp` prints, and which modules it has imported at its end."""
    env = {**os.environ, "PYTHONPATH": str(REPO / "src"), **environment}
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], env=env, capture_output=True, text=True, check=False, timeout=60)
    _, mark, modules = done.stderr.rpartition("MODULES ")
    assert mark, done.stderr
    return done.stdout, set(modules.split())


def heavy(modules: set[str]) -> list[str]:
    """Those of them that only a command may need."""
    return sorted(name for name in modules if name.partition(".")[0] in HEAVY or name.startswith(OURS))


def commands() -> Iterator[tuple[str, LazyGroup, str, Lazy]]:
    """All lazy commands."""
    assert isinstance(group.dist, LazyGroup) and isinstance(root, LazyGroup)
    for path, parent in (("ckp", root), ("ckp dist", group.dist)):
        for name, item in parent.lazy.items():
            yield f"{path} {name}", parent, name, item


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["dist", "--help"], ["completion", "bash"]], ids=" ".join)
def test_help_imports_no_command(arguments: list[str]) -> None:
    printed, modules = run(*arguments)
    assert printed and heavy(modules) == []
    assert not {item.target.partition(":")[0] for item in (*COMMANDS.values(), *group.COMMANDS.values())} - {"ckp.cli.distribution.group"} & modules


def test_names_are_completed_without_importing_the_commands() -> None:
    printed, modules = run(_CKP_COMPLETE="bash_complete", COMP_WORDS="ckp ho", COMP_CWORD="1")
    assert printed.split() == ["plain,host", "plain,hostgroup"] and heavy(modules) == []
    printed, modules = run(_CKP_COMPLETE="bash_complete", COMP_WORDS="ckp dist pr", COMP_CWORD="2")
    assert printed.split() == ["plain,provenance", "plain,prune"] and heavy(modules) == []


def test_a_commands_options_and_subcommands_are_completed() -> None:
    assert run(_CKP_COMPLETE="bash_complete", COMP_WORDS="ckp dist build --pro", COMP_CWORD="3")[0].split() == ["plain,--profile"]
    assert "plain,matrix" in run(_CKP_COMPLETE="bash_complete", COMP_WORDS="ckp release ", COMP_CWORD="2")[0].split()


def test_the_command_is_called_ckp_however_it_is_started() -> None:
    assert run("--help")[0].startswith("Usage: ckp [OPTIONS] COMMAND [ARGS]...\n")
    argv = [sys.executable, "-m", "ckp.cli.main", "cluster", "--help"]
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(REPO / "src")}, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("Usage: ckp cluster [OPTIONS]")


@pytest.mark.parametrize(("path", "parent", "name", "item"), list(commands()), ids=[path for path, *_ in commands()])
def test_the_summary_is_the_first_sentence_of_the_commands_own_help(path: str, parent: LazyGroup, name: str, item: Lazy) -> None:
    command = item.load()
    assert command.name == name
    assert item.summary == command.get_short_help_str(limit=1000), f"{path}: write the table's summary as the command's help has it"


def test_each_summary_is_printed() -> None:
    answer = CliRunner().invoke(root, ["--help"], terminal_width=300, prog_name="ckp").output
    lines = {line.split(None, 1)[0]: line.split(None, 1)[1] for line in answer.partition("Commands:\n")[2].splitlines()}
    assert {name: lines[name] for name in COMMANDS} == {name: item.summary for name, item in COMMANDS.items()}
    assert lines["completion"].startswith("Print completion code")


def test_an_unknown_command_is_compared_with_those_that_are_not_imported() -> None:
    answer = CliRunner().invoke(root, ["clutser"], prog_name="ckp")
    assert answer.exit_code == 2 and "No such command 'clutser'" in answer.output and "'cluster'" in answer.output.partition("Did you mean")[2]


@pytest.mark.parametrize("command", ["cluster", "host", "hostgroup", "lab", "standalone"])
def test_what_talks_to_compass_needs_no_extra(command: str) -> None:
    _, modules = run(command, "--help")
    extra = {"lightkube", "pysequoia", "cyclonedx", "sqlalchemy", "fastapi", "structlog", "uvicorn", "websockets"}
    assert extra & modules == set() and not any(name.startswith("ckp.distribution") for name in modules)


def test_every_command_is_imported_without_an_extra() -> None:
    """What an extra brings is imported by what uses it: the deb and the rpm have none of it (tests/component/test_command_packages.py)."""
    extras = [item for name in ("build", "platform", "dev") for item in EXTRAS[name]]
    own = names(extras) - names(PROJECT["dependencies"])
    blocked = {module for module, owners in packages_distributions().items() if own & {canonicalize_name(owner) for owner in owners}}
    assert {"pysequoia", "lightkube", "fastapi", "setuptools"} <= blocked
    code = f"import sys\nsys.modules.update(dict.fromkeys({sorted(blocked)}))\nfrom ckp.cli.main import COMMANDS\nfrom ckp.cli.distribution import group\n"
    code += "from ckp.cli.site import LAZY\nfor item in (*COMMANDS.values(), *group.COMMANDS.values(), *LAZY.values()): item.load()\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPO / "src")}, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["keys", "trust", "FILE"], ["dist", "build", "v1.35.1"]], ids=" ".join)
def test_a_package_that_is_not_installed_is_named_before_anything_is_made(arguments: list[str], tmp_path: Path) -> None:
    code = "import sys\nsys.modules['pysequoia'] = None\nfrom ckp.cli.main import main\nmain()\n"
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "trusted.gpg").touch()
    (tmp_path / "FILE").touch()
    env = {**os.environ, "PYTHONPATH": str(REPO / "src"), "CKP_KEYS": str(tmp_path / "keys"), "CKP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "needs the Python package pysequoia, which is not installed" in done.stderr and "pip install 'ckp[build]'" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_fault_of_our_own_is_no_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"ckp\.cli\.nothing"):
        Lazy("ckp.cli.nothing:nothing", "").load()
    with pytest.raises(TypeError, match="not a click command"):
        Lazy("ckp.cli.main:main", "").load()
    assert isinstance(root, click.Group)
