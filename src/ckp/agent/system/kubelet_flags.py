"""The kubelet's extra arguments, in the file that its unit reads: KUBELET_EXTRA_ARGS. They come after those that kubeadm writes, so they win."""

from __future__ import annotations

import re
from typing import Mapping

from ckp.agent.journal import Journal
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.files import read_text
from ckp.hostkit.processes import have

DEBIAN_FILE = "/etc/default/kubelet"
RHEL_FILE = "/etc/sysconfig/kubelet"
MOST_BYTES = 400
"""Of names that are reported, each with its quotes and comma: a hub of 0.2.0 takes no longer facts. That is some twenty; owners give a few."""
_LINE = re.compile(r"^KUBELET_EXTRA_ARGS=(.*)$", re.M)
_PLAIN = re.compile(r"""(["']?)([^"'\\$`\n]*)\1""")


def file() -> str:
    """The file that the drop-in of this system's package reads."""
    return DEBIAN_FILE if have("dpkg") else RHEL_FILE


def check(arguments: str) -> None:
    """InvalidInput if the arguments would end the quotes around them."""
    if re.search(r"[\"\\$`\n]", arguments):
        raise InvalidInput(f"the kubelet's arguments must not have a quote, a backslash, $ or a line break: {arguments!r}")


def write(journal: Journal, arguments: str) -> None:
    """Replace the file; its original is restored when the host leaves. Raises InvalidInput."""
    check(arguments)
    journal.replace_file(file(), f'KUBELET_EXTRA_ARGS="{arguments}"\n')


def parse(text: str) -> list[str]:
    """The arguments in the text of the file, one an item. AgentError if they can't be told apart without a shell."""
    lines = _LINE.findall(text)
    match = _PLAIN.fullmatch(lines[-1].strip()) if lines else None  # systemd takes the last line
    if lines and match is None:
        raise AgentError(
            f"KUBELET_EXTRA_ARGS in {file()} can't be read, so this node's settings are not kept up to date",
            resolution="write them as plain words, --flag=value, in one pair of quotes",
            reason="KubeletArgumentsUnreadable",
        )
    return match.group(2).split() if match else []


def flags(text: str) -> dict[str, str]:
    """The arguments in the text of the file by flag. AgentError as of `parse`."""
    return {name: value for name, _, value in (word.partition("=") for word in parse(text))}


def node_ip() -> str:
    """The address that this host's kubelet was given for its node; "" if none."""
    try:
        return flags(read_text(file())).get("--node-ip", "").partition(",")[0]
    except AgentError:
        return ""


def names() -> tuple[str, ...]:
    """Names of the arguments of this host's kubelet, without dashes and values: as many as MOST_BYTES takes, none if they can't be read without a shell."""
    try:
        found = flags(read_text(file()))
    except AgentError:
        return ()
    told: list[str] = []
    for name in sorted({name[2:] for name in found if re.fullmatch(r"--[a-z0-9-]{1,64}", name)}):
        if sum(len(item) + 4 for item in (*told, name)) <= MOST_BYTES:
            told.append(name)
    return tuple(told)


def changed(text: str, wanted: Mapping[str, str]) -> str:
    """The text of the file with these flags set ("": without the flag), and with everything else as it was: the host's owner may have added arguments.

    Raises:
        AgentError: the text can't be read.
        InvalidInput: a value can't be written.
    """
    words = []
    rest = dict(wanted)
    for word in parse(text):
        flag = word.partition("=")[0]
        if flag not in wanted:
            words.append(word)
        elif value := rest.pop(flag, ""):
            words.append(f"{flag}={value}")
    words += [f"{flag}={value}" for flag, value in rest.items() if value]
    arguments = " ".join(words)
    check(arguments)
    line = f'KUBELET_EXTRA_ARGS="{arguments}"'
    found = list(_LINE.finditer(text))
    if not found:
        return f"{text.rstrip()}\n{line}\n".lstrip()
    return text[: found[-1].start()] + line + text[found[-1].end() :]
