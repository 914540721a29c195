"""Hosts by SSH, against a real sshd on loopback: what arrives there, what comes back, and what is said when it does not."""

from __future__ import annotations

import base64
import getpass
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.processes import ProcessFailed, run
from ckp.kits.retry import wait_until
from ckp.site.inventory import SiteHost
from ckp.site.ssh import Failure, SshFailed, SshHost, SshSettings
from ckp.site.ssh import failures as sentences
from ckp.site.ssh.connection import LONGEST_SOCKET, runtime_folder
from ckp.site.ssh.host import remote_command
from tests.support import ssh_server as servers
from tests.support.checkout import REPO
from tests.support.ssh_server import SshServer, fingerprint, make_key, marker, processes, ssh_server

SETTINGS = "from pathlib import Path as PosixPath; from ckp.site.ssh import *; "
"""What another process needs to read settings by their repr."""
ODD = ["", "-n", "--", "a\nb\n", "'", '"', "\\", "'\"'\\''", "$HOME `id` $(id) !!", "*", "~", "#", ";", "\t ", "é\udce9", "\x1b[0m", "a" * 40_000]
"""Arguments that shells like to change."""

pytestmark = pytest.mark.root("an sshd runs commands as root")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.fixture(scope="module")
def host(server: SshServer) -> Iterator[SshHost]:
    with SshHost("one", "192.0.2.1", server.settings) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[SshServer]:
    """A server that the test may break."""
    with ssh_server(tmp_path) as made:
        yield made


def gone(mark: str) -> None:
    wait_until(lambda: not processes(mark), what="the command has ended on the host", timeout=60, every=0.05)


def failed(settings: SshSettings) -> SshFailed:
    """The error of a connection that is not made."""
    with SshHost("one", "192.0.2.1", settings) as host, pytest.raises(SshFailed) as caught:
        host.run(["true"], timeout=20)
    return caught.value


def lines_of(error: CkpError) -> str:
    return error.render()


# -- commands


def test_it_is_a_host_of_a_site(host: SshHost) -> None:
    as_host: SiteHost = host
    assert (as_host.name, as_host.address) == ("one", "192.0.2.1")


def test_a_command_gets_its_input_and_returns_its_code_and_both_outputs(host: SshHost) -> None:
    done = host.run(["sh", "-c", "cat; echo words >&2; exit 7"], timeout=20, stdin="in\n", check=False)
    assert (done.code, done.stdout, done.stderr) == (7, "in\n", "words\n")
    assert done.argv == ("sh", "-c", "cat; echo words >&2; exit 7")
    with pytest.raises(ProcessFailed, match=r"^greeting on one failed with exit code 7\nwords$"):
        host.run(["sh", "-c", "echo words >&2; exit 7"], timeout=20, what="greeting")


def test_a_command_runs_as_root_in_a_plain_environment(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_CKP_TEST", "x")
    done = host.run(["sh", "-c", "id -u; pwd; umask; env | sort; readlink /proc/self/fd/0; ls /proc/self/fd"], timeout=20).stdout
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert done.split() == ["0", "/", "0022", "HOME=/root", "LANG=C.UTF-8", "LOGNAME=root", path, "PWD=/", "USER=root", "/dev/null", "0", "1", "2", "3"]


@pytest.mark.parametrize("code", [0, 1, 124, 127, 137, 255])
def test_the_commands_own_code_is_never_taken_for_that_of_ssh_or_of_a_limit(host: SshHost, code: int) -> None:
    assert host.run(["sh", "-c", f"exit {code}"], timeout=20, check=False).code == code
    assert host.stream(["sh", "-c", f"exit {code}"], timeout=20, on_line=print) == code


def test_what_is_a_program_is_run_and_not_the_shells_own_command(host: SshHost) -> None:
    for argv in (["-x"], ["A=b"], ["exit"], ["no-such-program"], [""]):
        done = host.run(argv, timeout=20, check=False)
        assert (done.code, done.stdout) in ((127, ""), (126, "")), argv
        assert "ckp-" not in done.stderr


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40), max_size=5))
@settings(max_examples=25)
def test_any_arguments_arrive_byte_for_byte(host: SshHost, arguments: list[str]) -> None:
    arrived(host, arguments)


@pytest.mark.parametrize("argument", ODD)
def test_arguments_that_shells_like_to_change_arrive_as_they_are(host: SshHost, argument: str) -> None:
    arrived(host, [argument, argument])


def arrived(host: SshHost, arguments: list[str]) -> None:
    script = "for each; do printf '%s\\0' \"$each\"; done | base64 -w 0"
    done = host.run(["sh", "-c", script, "sh", *arguments], timeout=60)
    assert base64.b64decode(done.stdout).split(b"\0")[:-1] == [os.fsencode(argument) for argument in arguments]


def test_what_cannot_be_an_argument_is_refused_before_anything_is_run(server: SshServer) -> None:
    with SshHost("one", "192.0.2.1", server.settings) as host:
        for argv, words in ((["a\0b"], "NUL"), (["x" * 200_000], "too long"), ([], "no command")):
            with pytest.raises(InvalidInput, match=words):
                host.run(argv, timeout=20)


def test_output_is_streamed_while_the_command_still_runs(host: SshHost) -> None:
    arrivals: list[tuple[str, float]] = []
    script = "echo first; sleep 1; echo second >&2; echo; printf last; exit 4"
    code = host.stream(["sh", "-c", script], timeout=20, on_line=lambda line: arrivals.append((line, time.monotonic())))
    assert code == 4
    assert [line for line, _ in arrivals] == ["first", "second", "", "last"]
    assert arrivals[1][1] - arrivals[0][1] > 0.5


def test_many_commands_at_a_time_share_one_connection_which_ends_with_the_host(own: SshServer) -> None:
    with SshHost("one", "192.0.2.1", own.settings) as host:
        with ThreadPoolExecutor(12) as pool:
            assert {done.stdout for done in pool.map(lambda _: host.run(["echo", "here"], timeout=60), range(12))} == {"here\n"}
        assert own.log.read_text().count("Accepted publickey") == 1
        (folder,) = {host._connection.control.parent}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [path.name for path in folder.iterdir()] == ["c"]
        assert own.connections()
    assert not folder.exists()
    wait_until(lambda: not own.connections(), what="the connection is closed", timeout=60)
    assert host.run(["echo", "again"], timeout=20).stdout == "again\n", "and is made again when it is needed"
    host.close()


def test_the_connection_also_ends_with_the_process(own: SshServer) -> None:
    code = f"{SETTINGS}host = SshHost('one', '', {own.settings!r}); print(host.run(['id', '-u'], timeout=20).stdout, host._connection.control.parent)"
    done = run([sys.executable, "-c", code], timeout=60, cwd=REPO, env={"PYTHONPATH": "src:."})
    user, folder = done.stdout.split()
    assert user == "0"
    assert not Path(folder).exists()
    wait_until(lambda: not own.connections(), what="the connection is closed", timeout=60)


def test_the_folder_of_the_socket_is_short_enough_wherever_temporary_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(long))
    monkeypatch.setattr("tempfile.tempdir", str(long))
    made = runtime_folder()
    try:
        assert len(str(made / "c")) <= LONGEST_SOCKET
    finally:
        made.rmdir()


# -- the end of commands


def test_a_command_that_takes_too_long_is_killed_there_with_its_children(host: SshHost) -> None:
    mark = marker()
    started = time.monotonic()
    with pytest.raises(ProcessFailed, match=r"^sh on one did not end within 2 s\nsaid before$"):
        host.run(["sh", "-c", f"echo said before; sleep {mark} & sleep {mark} & wait"], timeout=2)
    assert time.monotonic() - started < 30
    gone(mark)


def test_a_streamed_command_that_takes_too_long_is_killed_there(host: SshHost) -> None:
    mark = marker()
    seen: list[str] = []
    with pytest.raises(ProcessFailed, match="did not end within 2 s"):
        host.stream(["sh", "-c", f"echo begins; trap '' TERM HUP INT; sleep {mark}"], timeout=2, on_line=seen.append)
    assert seen == ["begins"]
    gone(mark)


def test_a_command_ends_there_when_our_process_is_killed(own: SshServer) -> None:
    mark, folder = marker(), runtime_folder()  # the socket's folder is what a killed process leaves
    code = f"{SETTINGS}SshHost('one', '', {own.settings!r}).run(['sleep', {mark!r}], timeout=500)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPO, env={**os.environ, "PYTHONPATH": "src:.", "XDG_RUNTIME_DIR": str(folder)}, start_new_session=True
    )
    try:
        wait_until(lambda: processes(mark, "sleep"), what="the command runs", timeout=60, every=0.05)
    finally:
        child.kill()
        child.wait()
    gone(mark)
    shutil.rmtree(folder)


def test_a_command_ends_there_soon_after_its_time_when_nobody_tells_the_host() -> None:
    """The far side alone, with an input that never ends: as on a host that does not notice a broken connection."""
    mark = marker()
    text = remote_command("ckp-token", -4.0, 0, "apart", ["sleep", mark])  # a limit of one second there
    far, near = os.pipe()
    try:
        done = subprocess.run(["sh", "-c", text], stdin=far, capture_output=True, timeout=30, check=False)
    finally:
        os.close(far)
        os.close(near)
    assert done.stderr.split(b"\n")[:2] == [b"ckp-token begin", b"ckp-token ended 124"]
    gone(mark)


def test_a_command_that_was_killed_on_the_host_is_told_from_a_lost_connection(host: SshHost) -> None:
    with pytest.raises(ProcessFailed, match="sh on one was killed there"):
        host.run(["sh", "-c", "kill -s KILL 0"], timeout=20)


def test_a_connection_that_breaks_is_an_error_with_a_sentence(own: SshServer) -> None:
    mark = marker()
    with SshHost("one", "192.0.2.1", own.settings) as host, ThreadPoolExecutor(2) as pool:
        ran = pool.submit(host.run, ["sleep", mark], timeout=60)
        streamed = pool.submit(host.stream, ["sleep", mark], timeout=60, on_line=print)
        wait_until(lambda: len(processes(mark, "sleep")) == 2, what="both run", timeout=30, every=0.05)
        own.cut()
        for future in (ran, streamed):
            with pytest.raises(SshFailed, match=r"the connection to one was lost while sleep on one ran there; how it ended is not known") as caught:
                future.result(timeout=30)
            assert caught.value.failure is Failure.LOST
        assert host.run(["echo", "again"], timeout=20).stdout == "again\n", "the next command connects again"
    gone(mark)


def test_a_host_that_stops_answering_costs_no_more_than_the_commands_time(own: SshServer) -> None:
    with SshHost("one", "192.0.2.1", own.settings) as host:
        host.run(["true"], timeout=20)
        assert own.child is not None
        stopped = [own.child.pid, *own.connections()]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(CkpError, match="did not end within 2 s"):
            host.run(["true"], timeout=2)
        assert time.monotonic() - started < 30


# -- files


def test_files_go_there_and_back_unchanged(host: SshHost, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "data").write_bytes(data)
    target = tmp_path / "new dir" / "-it's\ndata"
    host.push(tmp_path / "data", str(target), mode=0o750)
    assert host.pull(str(target)) == data == target.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    host.push(b"", str(target), mode=0o600)
    assert host.pull(str(target)) == b""
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_that_cannot_be_written_or_read_is_an_error_that_names_it(host: SshHost, tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="writing /proc/no/such on one failed"):
        host.push(b"x", "/proc/no/such")
    with pytest.raises(ProcessFailed, match="/no/such"):
        host.pull("/no/such")
    with pytest.raises(ProcessFailed, match=f"writing {tmp_path} on one failed"):
        host.push(b"x", str(tmp_path))
    assert [path.name for path in tmp_path.parent.glob(f"{tmp_path.name}.*")] == []
    with pytest.raises(NotFound, match="no-such"):
        host.push(tmp_path / "no-such", "/tmp/x")
    for target in ("relative", "/folder/", ""):
        with pytest.raises(InvalidInput, match="absolute path"):
            host.push(b"x", target)


def test_a_connection_that_breaks_in_the_middle_of_a_file_leaves_the_old_one(own: SshServer, tmp_path: Path) -> None:
    target, large = tmp_path / "there" / "file", tmp_path / "large"
    target.parent.mkdir()
    target.write_text("old")
    with large.open("wb") as file:
        file.truncate(8 << 30)  # never sent to its end

    def coming() -> bool:
        return any(path.stat().st_size > 1 << 20 for path in target.parent.glob("file.*"))

    with SshHost("one", "192.0.2.1", own.settings) as host, ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(host.push, large, str(target))
        wait_until(coming, what="a part of it is there", timeout=60, every=0.01)
        own.cut()
        with pytest.raises(SshFailed, match=f"lost while writing {target} on one ran there"):
            pushed.result(timeout=30)
    wait_until(lambda: [path.name for path in target.parent.iterdir()] == ["file"], what="the part is removed", timeout=60)
    assert target.read_text() == "old"


# -- connections that are not made


def test_an_unknown_host_key_is_shown_and_not_accepted_and_the_shown_command_trusts_it(own: SshServer) -> None:
    own.known_hosts.write_text("")
    error = failed(own.settings)
    assert error.failure is Failure.HOST_KEY
    assert "its host key is not known" in error.brief
    assert fingerprint(own.folder / "host_key.pub") in error.details
    assert own.known_hosts.read_text() == ""
    assert "Accepted" not in own.log.read_text()
    run(["sh", "-c", error.resolution.partition("trust it: ")[2]], timeout=20)
    with SshHost("one", "192.0.2.1", own.settings) as host:
        assert host.run(["id", "-u"], timeout=20).stdout == "0\n"


def test_a_changed_host_key_is_refused_and_the_shown_commands_trust_the_new_one(own: SshServer) -> None:
    before = own.known_hosts.read_text()
    own.stop()
    make_key(own.folder / "host_key")
    own.start()
    error = failed(own.settings)
    assert error.failure is Failure.HOST_KEY
    assert "its host key has changed, or another machine answers in its place" in error.brief
    assert fingerprint(own.folder / "host_key.pub") in error.details
    assert f"{own.known_hosts}:1" in error.details
    assert own.known_hosts.read_text() == before
    run(["sh", "-c", error.resolution.partition("if it is the same: ")[2]], timeout=20)
    with SshHost("one", "192.0.2.1", own.settings) as host:
        assert host.run(["id", "-u"], timeout=20).stdout == "0\n"


def test_host_keys_are_checked_whatever_the_configuration_says(own: SshServer) -> None:
    own.known_hosts.write_text("")
    (own.folder / "ssh_config").write_text("Host *\n StrictHostKeyChecking no\n LocalCommand touch /tmp/no\n PermitLocalCommand yes\n")
    assert failed(own.settings).failure is Failure.HOST_KEY
    assert own.known_hosts.read_text() == ""


def test_a_login_that_is_not_taken_names_the_keys_that_were_tried(own: SshServer) -> None:
    make_key(own.folder / "other")
    error = failed(replace(own.settings, identity_file=own.folder / "other"))
    assert error.failure is Failure.PERMISSION
    assert f"does not take the login of {getpass.getuser()}" in error.brief
    assert fingerprint(own.folder / "other.pub") in error.details
    assert "the host takes: publickey" in error.details
    without = failed(replace(own.settings, identity_file=own.folder / "no-such-key"))
    assert without.failure is Failure.PERMISSION
    assert "no key was tried" in without.details


def test_a_host_that_is_not_there_is_told_by_what_is_wrong(server: SshServer) -> None:
    refused = failed(replace(server.settings, port=servers.free_port()))
    assert (refused.failure, "refuses the connection" in refused.brief) == (Failure.REFUSED, True)
    nameless = failed(replace(server.settings, host="no-such-host.invalid"))
    assert (nameless.failure, "the name no-such-host.invalid does not resolve" in nameless.brief) == (Failure.RESOLVE, True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        late = failed(replace(server.settings, port=silent.getsockname()[1], connect_timeout=1))
        assert (late.failure, "does not answer within 1 s" in late.brief) == (Failure.TIMED_OUT, True)
        assert time.monotonic() - started < 30
    assert all(error.resolution for error in (refused, nameless, late))


def test_a_wrong_configuration_is_shown(own: SshServer) -> None:
    (own.folder / "ssh_config").write_text("NoSuchOption yes\n")
    error = failed(own.settings)
    assert error.failure is Failure.OTHER
    assert "nosuchoption" in lines_of(error)


def test_the_configurations_aliases_and_jump_hosts_are_used(own: SshServer) -> None:
    files = f" IdentityFile {own.key}\n UserKnownHostsFile {own.known_hosts}\n User {getpass.getuser()}\n Port {own.port}\n HostName 127.0.0.1\n"
    (own.folder / "ssh_config").write_text(f"Host jump\n{files}\nHost far\n ProxyJump jump\n{files}")
    with SshHost("far", "192.0.2.1", SshSettings("far", config_file=own.folder / "ssh_config")) as host:
        assert host.run(["id", "-u"], timeout=30).stdout == "0\n"
        assert own.log.read_text().count("Accepted publickey") == 2
    own.known_hosts.write_text("")
    error = failed(SshSettings("far", config_file=own.folder / "ssh_config"))
    assert (error.failure, "the key of a host on the way is not trusted" in error.brief) == (Failure.HOST_KEY, True)


def test_what_a_login_shell_says_is_not_the_commands_output(tmp_path: Path) -> None:
    (tmp_path / "noisy").write_text('#!/bin/sh\necho welcome\necho take care >&2\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    (tmp_path / "noisy").chmod(0o755)
    with ssh_server(tmp_path, f"ForceCommand {tmp_path}/noisy") as server, SshHost("one", "", server.settings) as host:
        done = host.run(["sh", "-c", "echo out; echo err >&2"], timeout=20)
        assert (done.stdout, done.stderr) == ("out\n", "err\n")
        seen: list[str] = []
        assert host.stream(["echo", "out"], timeout=20, on_line=seen.append) == 0
        assert seen == ["out"]
        host.push(b"x", str(tmp_path / "pushed"))
        assert host.pull(str(tmp_path / "pushed")) == b"x"


def test_what_a_login_shell_says_late_is_not_the_commands_output_either(tmp_path: Path) -> None:
    """sshd reads standard output and standard error of a command as two pipes: which of them comes first, nobody says."""
    (tmp_path / "late").write_text('#!/bin/sh\n(sleep 0.5; echo take care >&2) &\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    (tmp_path / "late").chmod(0o755)
    with ssh_server(tmp_path, f"ForceCommand {tmp_path}/late") as server, SshHost("one", "", server.settings) as host:
        seen: list[str] = []
        assert host.stream(["sh", "-c", "sleep 2; echo out; echo err >&2"], timeout=60, on_line=seen.append) == 0
        assert seen == ["out", "err"]


def test_a_login_that_runs_no_command_is_told_from_a_command_that_fails(tmp_path: Path) -> None:
    with ssh_server(tmp_path, "ForceCommand echo this account is closed; exit 1") as server, SshHost("one", "", server.settings) as host:
        for call in (lambda: host.run(["true"], timeout=20), lambda: host.stream(["true"], timeout=20, on_line=print)):
            with pytest.raises(SshFailed, match="the login works, but no command runs there") as caught:
                call()
            assert caught.value.failure is Failure.OTHER


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ("sudo: a password is required\n", "without a password"),
        ("sudo: a terminal is required to read the password; either use the -S option to read from standard input\n", "without a password"),
        ("sudo: sorry, you must have a tty to run sudo\n", "without a password"),
        ("ada is not in the sudoers file.\n", "without a password"),
        ("Sorry, user ada is not allowed to execute '/usr/bin/env' as root on one.\n", "without a password"),
        ("sh: 1: exec: sudo: not found\n", "there is no sudo"),
        ("sh: line 1: exec: sudo: not found\n", "there is no sudo"),
    ],
)
def test_what_sudo_says_becomes_a_sentence(errors: str, words: str) -> None:
    error = sentences.not_begun("one", "true on one", 1, "", errors)
    assert error.failure is Failure.SUDO
    assert words in error.brief
    assert error.resolution


@pytest.mark.parametrize(
    "bad",
    [
        {"host": "-oProxyCommand=touch /tmp/x"},
        {"host": ""},
        {"host": "one two"},
        {"host": "one\n"},
        {"host": "root@one"},
        {"user": "-l"},
        {"user": "a b"},
        {"port": 0},
        {"port": 65536},
        {"connect_timeout": 0},
        {"known_hosts_file": Path('/a"b')},
        {"identity_file": Path("/a\nb")},
    ],
)
def test_settings_that_ssh_would_read_as_something_else_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        replace(SshSettings("one"), **bad)  # type: ignore[arg-type]


def test_paths_with_spaces_and_percent_signs_are_taken_as_they_are(own: SshServer, tmp_path: Path) -> None:
    odd = tmp_path / "with %h and space"
    odd.mkdir()
    for name in ("id", "id.pub", "known_hosts"):
        (odd / name).write_bytes((own.folder / name).read_bytes())
    (odd / "id").chmod(0o600)
    with SshHost("one", "", replace(own.settings, identity_file=odd / "id", known_hosts_file=odd / "known_hosts")) as host:
        assert host.run(["id", "-u"], timeout=20).stdout == "0\n"


def test_no_content_is_on_a_command_line(host: SshHost, tmp_path: Path) -> None:
    """Neither of input nor of a file: all arguments of all processes are looked at while a command with them runs."""
    secret = f"secret-{os.getpid()}-{time.time_ns()}"
    seen: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    if secret.encode() in (entry / "cmdline").read_bytes():
                        seen.append(entry.name)
                except OSError:
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert re.fullmatch(r"[0-9a-f]+", host.run(["sh", "-c", "sha256sum | cut -d' ' -f1; sleep 1"], timeout=20, stdin=secret).stdout.strip())
        host.push(secret.encode(), str(tmp_path / "secret"), mode=0o600)
        assert host.pull(str(tmp_path / "secret")) == secret.encode()
    finally:
        done.set()
        watcher.join()
    assert seen == []
