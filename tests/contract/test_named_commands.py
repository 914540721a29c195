"""What a page, a help text or an error tells a person to run is there: every `ckp …` and `ckp-agent …` is a command, with the options that are named.

Read are: what stands between backticks in docs, src and packaging, the shell lines of docs and of the Makefile, and the texts of src (a resolution has no
backticks). There the words after a command may be prose: what begins with no command of ours is taken for prose, and of the rest a group's next word and
the options are held against the command line.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from ckp.agent.main import parser as agent_parser
from ckp.cli.main import root
from ckp.hosttool.backup.command import parser as backup_parser
from ckp.standalone.command import parser as standalone_parser
from tests.support.checkout import REPO

pytestmark = pytest.mark.contract

PAGES = [*sorted((REPO / "docs").rglob("*.md")), *(REPO / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile"))]
SOURCES = sorted(path for folder in ("src", "packaging") for path in (REPO / folder).rglob("*") if path.suffix in (".py", ".sh", ".txt", ".service", ".toml"))
PROGRAM = re.compile(r"(?<![\w/.-])(?:\./)?(ckp-agent|ckp) (?=\S)")
ENDS = re.compile(r"\s(?:[|&;<>#]|\d?>)|[;|]\s|\\$|$")
BEFORE = re.compile(r"(^|[|;&(@$]|\bsudo)\s*(\w+=\S*\s+)*$")
"""Where in a shell line a command begins."""
VARIABLE = re.compile(r"\$\((?:[^()]|\([^()]*\))*\)")
WORD = re.compile(r"[a-z][a-z0-9-]*(\|[a-z][a-z0-9-]*)*")
OPTION = re.compile(r"--?[a-zA-Z][a-z0-9-]*")


def options_of(command: click.Command) -> set[str]:
    """All that a command takes that begins with a dash."""
    return {name for item in command.params for name in (*item.opts, *item.secondary_opts) if name.startswith("-")} | {"-h", "--help"}


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a parser, by name."""
    found = next((item for item in parser._actions if isinstance(item, argparse._SubParsersAction)), None)
    return dict(found.choices) if found is not None else {}


def click_problem(words: Sequence[str], *, prose: bool) -> str:
    """What is wrong with `ckp` followed by these words; "" if nothing."""
    command: click.Command = root
    known = options_of(root)
    context = click.Context(root, info_name="ckp")
    rest = list(words)
    while rest and isinstance(command, click.Group) and WORD.fullmatch(rest[0]):
        names = rest.pop(0).split("|")
        found = [command.get_command(context, name) for name in names]
        if None in found:
            return f"{context.command_path} has no command {names[found.index(None)]}"
        if len(names) > 1:
            return ""
        assert found[0] is not None
        command = found[0]
        context, known = click.Context(command, parent=context, info_name=names[0]), known | options_of(command)
    if wrong := option_problem(context.command_path, rest, known, prose=prose):
        return wrong
    return "" if prose or isinstance(command, click.Group) else argument_problem(context.command_path, rest, command)


def argument_problem(path: str, rest: Sequence[str], command: click.Command) -> str:
    """The first word that a command has no argument for; an option's value is none."""
    valued = {name for item in command.params if isinstance(item, click.Option) and not (item.is_flag or item.count) for name in item.opts}
    arguments = [item for item in command.params if isinstance(item, click.Argument)]
    most = sum(abs(item.nargs) for item in arguments) + 1000 * any(item.nargs < 0 for item in arguments)
    found, value = 0, False
    for word in rest:
        if value or word.startswith("-"):
            value = not value and word in valued
        elif word != "…":
            found += 1
        if found > most:
            return f"{path} takes no argument {word}"
    return ""


def agent_problem(words: Sequence[str], *, prose: bool) -> str:
    """What is wrong with `ckp-agent` followed by these words; "" if nothing."""
    parser, path, rest = agent_parser(), "ckp-agent", list(words)
    if rest[:1] == ["standalone"]:
        parser, path, rest = standalone_parser(), "ckp-agent standalone", rest[1:]
    elif rest[:1] == ["backup"]:
        parser, path, rest = backup_parser(), "ckp-agent backup", rest[1:]
    known = {name for item in parser._actions for name in item.option_strings}
    while rest and (commands := below(parser)) and WORD.fullmatch(rest[0]):
        names = rest.pop(0).split("|")
        if unknown := [name for name in names if name not in commands]:
            return f"{path} has no command {unknown[0]}"
        if len(names) > 1:
            return ""
        parser, path = commands[names[0]], f"{path} {names[0]}"
        known |= {name for item in parser._actions for name in item.option_strings}
    return option_problem(path, rest, known, prose=prose)


def option_problem(path: str, rest: Sequence[str], known: set[str], *, prose: bool) -> str:
    """The first option that a command does not take; after a lone `--`, or after the end of a command in prose, nothing is an option of ours."""
    for word in rest:
        name = word.partition("=")[0].rstrip(",.:)")
        if word == "--" or (path.endswith(" shell") and not word.startswith("-")):
            break
        if OPTION.fullmatch(name) and name not in known:
            return f"{path} has no option {name}"
        if prose and word != name:
            break
    return ""


def problem(text: str, *, prose: bool = False) -> str:
    """What is wrong with the command line that begins with the name of a program."""
    program, _, rest = text.partition(" ")
    words = [word.strip("[]") for word in rest.split()]
    agent = program.endswith("ckp-agent")
    if prose and words[0].partition("|")[0] not in (below(agent_parser()) if agent else root.list_commands(click.Context(root))):
        return ""
    return agent_problem(words, prose=prose) if agent else click_problem(words, prose=prose)


def quoted(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of what stands between backticks and begins with one of the programs."""
    for found in re.finditer(r"`((?:\./)?(?:ckp|ckp-agent) [^`]+)`", text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[1].split())


def lines_of_shell(text: str, *, makefile: bool) -> Iterator[tuple[int, str]]:
    """Line and text of the commands in a page's blocks of code, or in a Makefile's recipes."""
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif (inside and not makefile) or (makefile and line.startswith("\t")):
            code = VARIABLE.sub("…", line).replace("`", "")
            for found in PROGRAM.finditer(code):
                if BEFORE.search(code[: found.start()]):
                    end = ENDS.search(code, found.end())
                    yield number, code[found.start() : end.start() if end else None].strip()


def texts_of(source: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every text of a module but docstrings; what is put in by an f-string is a placeholder."""
    tree = ast.parse(source.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings and id(node) not in parts:
            yield node.lineno, node.value


def commands_in_texts(source: Path) -> Iterator[tuple[int, str, bool]]:
    """Line and text of what may be a command in a module's texts, and whether prose may follow unmarked: not in parentheses."""
    for number, text in texts_of(source):
        for found in PROGRAM.finditer(text):
            command = re.split(r"[`,;:)(\n]|\. |\.$", text[found.start() :], maxsplit=1)[0]
            around = text[found.start() - 1 : found.start()], text[found.start() + len(command) :][:1]
            yield number, command.strip(), around != ("(", ")")


def findings() -> Iterator[str]:
    """Every command that is not there, with its place and what is wrong with it."""
    for path in (*PAGES, *SOURCES):
        text = path.read_text()
        commands = [(number, command, False) for number, command in quoted(text)]
        if path in PAGES:
            commands += [(number, command, False) for number, command in lines_of_shell(text, makefile=path.name == "Makefile")]
        if path.suffix == ".py":
            commands += commands_in_texts(path)
        for number, command, prose in commands:
            if wrong := problem(command, prose=prose):
                yield f"{path.relative_to(REPO)}:{number}: {command}: {wrong}"


def test_every_command_that_a_page_or_a_message_names_exists() -> None:
    assert sorted(set(findings())) == []


def test_enough_is_read() -> None:
    """A change of form in docs or src must not blind the test above."""
    assert sum(len(list(quoted(path.read_text()))) for path in PAGES) > 60
    assert sum(len(list(lines_of_shell(path.read_text(), makefile=path.name == "Makefile"))) for path in PAGES) > 30
    assert sum(len(list(commands_in_texts(path))) for path in SOURCES if path.suffix == ".py") > 40


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ckp host psk get", "ckp host psk takes no argument get"),
        ("ckp host psk --expires 12h --reset", ""),
        ("ckp host nonsense", "ckp host has no command nonsense"),
        ("ckp nonsense", "ckp has no command nonsense"),
        ("ckp up --fast", "ckp up has no option --fast"),
        ("./ckp up --from release.ckp", ""),
        ("ckp host label|nonsense HOST", "ckp host has no command nonsense"),
        ("ckp lab shell worker-1 journalctl -u ckp-agent", ""),
        ("ckp-agent nonsense", "ckp-agent has no command nonsense"),
        ("ckp-agent enrol --again", ""),
        ("ckp-agent enrol --twice", "ckp-agent enrol has no option --twice"),
        ("ckp-agent standalone install|reset|status", ""),
        ("ckp-agent standalone install --bundle FOLDER", ""),
        ("ckp-agent standalone repair", "ckp-agent standalone has no command repair"),
    ],
)
def test_a_command_that_is_not_there_is_named(command: str, words: str) -> None:
    assert problem(command) == words
