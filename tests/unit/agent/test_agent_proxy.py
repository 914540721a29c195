"""A host whose only way out is a proxy: one rule for channel, enrolment, pulls, package managers and containerd, and none of it for Kubernetes' own parts."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckp.agent.config import Config, load
from ckp.agent.fetch import pull as pulling
from ckp.agent.hub import channel as channel_module
from ckp.agent.hub import http
from ckp.agent.hub.errors import HubUnreachable
from ckp.agent.journal import Journal, Member
from ckp.agent.node import join
from ckp.agent.system import runtime_proxy
from ckp.hostkit import proxies
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.processes import Finished
from ckp.hostkit.processes import run as run_program
from tests.simulators.proxy import ProxySimulator, running
from tests.unit.agent import test_agent_channel as channel_world
from tests.unit.agent import test_agent_identity as enrolment_world
from tests.unit.agent.test_agent_join import ORDINARY, Host, host
from tests.unit.agent.test_agent_pull import Site, site

assert host and site  # fixtures
VARIABLES = [*proxies.NAMES, *(name.lower() for name in proxies.NAMES)]


@pytest.fixture(autouse=True)
def no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxySimulator]:
    """A proxy that is this host's for all addresses, those of loopback included: all servers of these tests are there."""
    monkeypatch.setattr(proxies, "ALWAYS_DIRECT", ())
    found = ProxySimulator()
    with running(found) as url:
        monkeypatch.setenv("HTTPS_PROXY", url)
        yield found


# -- the rule ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "host", "direct"),
    [
        ("", "hub.example", False),
        ("*", "hub.example", True),
        ("example.org", "example.org", True),
        ("example.org", "hub.example.org", True),
        ("example.org", "badexample.org", False),
        (".example.org", "hub.example.org", True),
        (".example.org", "example.org", False),
        ("*.example.org", "hub.example.org", True),
        ("EXAMPLE.org", "Hub.Example.ORG.", True),
        ("10.0.0.0/8", "10.9.8.7", True),
        ("10.0.0.0/8", "11.9.8.7", False),
        ("10.0.0.0/8", "hub.example", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7:8443", "192.0.2.7", True),
        ("192.0.2.7:9443", "192.0.2.7", False),
        ("fd00::/8", "fd00::1", True),
        ("[fd00::1]:8443", "fd00::1", True),
        ("fd00::1", "fd00:0::1", True),
        (" a.example , b.example ", "b.example", True),
        ("not/a/network,b.example", "b.example", True),
    ],
)
def test_no_proxy_is_read_as_go_reads_it(entries: str, host: str, direct: bool) -> None:
    assert proxies.is_direct(host, 8443, entries) is direct


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "kubernetes.default.svc", "x.y.svc.cluster.local"])
def test_the_host_itself_and_a_clusters_names_are_always_direct(host: str) -> None:
    assert proxies.proxy_for(host, 443, {"HTTPS_PROXY": "http://p:3128"}) is None


def test_upper_case_wins_and_a_bare_host_is_an_http_proxy() -> None:
    assert str(proxies.proxy({"HTTPS_PROXY": "p:8080", "https_proxy": "http://q"})) == "http://p:8080"
    assert str(proxies.proxy({"https_proxy": "http://q/"})) == "http://q:3128"
    assert str(proxies.proxy({"https_proxy": "http://[fd00::1]:80"})) == "http://[fd00::1]:80"
    assert proxies.proxy({"HTTP_PROXY": "http://q"}) is None and proxies.proxy({}) is None


@pytest.mark.parametrize("text", ["https://u:geheim@p:3128", "socks5://u:geheim@p", "http://u:geheim@", "http://u:geheim@p:99999", "http://u:geheim@p q"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput) as caught:
        proxies.proxy({"HTTPS_PROXY": text})
    assert "HTTPS_PROXY" in caught.value.brief and "http://PROXY:PORT" in caught.value.resolution and "geheim" not in caught.value.render()
    (tmp_path / "ca.pem").touch()
    (tmp_path / "config.json").write_text(json.dumps({"hub": "https://h", "channel": "wss://h", "ca": f"{tmp_path}/ca.pem"}))
    load(f"{tmp_path}/config.json")
    monkeypatch.setenv("HTTPS_PROXY", text)
    with pytest.raises(InvalidInput, match="HTTPS_PROXY"):
        load(f"{tmp_path}/config.json")


def test_a_password_is_in_no_text_about_a_proxy() -> None:
    found = proxies.proxy({"HTTPS_PROXY": "http://host:ge%40heim@p:1"})
    assert found is not None and "heim" not in f"{found} {found!r}"
    assert found.url() == "http://host:ge%40heim@p:1"


# -- the hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[channel_world.Hub]:
    """A hub that hosts know by an address that leads nowhere from here: only the proxy has a way to it."""
    found = channel_world.Hub(channel_world.Authority("hub CA"), tmp_path / "hub", address="192.0.2.7")
    found.start()
    yield found
    found.stop()


def agent_of(hub: channel_world.Hub, folder: Path) -> channel_world.Agent:
    agent = channel_world.make_agent(hub, folder)
    agent.channel.url = "wss://192.0.2.7:9443/v1/agent"
    return agent


def test_the_channel_goes_through_the_proxy(hub: channel_world.Hub, simulator: ProxySimulator, tmp_path: Path) -> None:
    simulator.routes["192.0.2.7:9443"] = f"127.0.0.1:{hub.port}"
    agent = agent_of(hub, tmp_path / "agent")
    agent.start()
    try:
        assert hub.next("hello")["boot_id"] == "boot"
        agent.until("Connected")
        assert simulator.asked == ["192.0.2.7:9443"]
        assert hub.connections[0].socket.version() == "TLSv1.3", "end to end, the proxy sees nothing of it"  # type: ignore[attr-defined]
    finally:
        agent.stop()


def test_the_channel_to_a_hub_of_no_proxy_is_direct(hub: channel_world.Hub, simulator: ProxySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "192.0.2.0/24")
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: _redirected(address, hub.port, timeout))
    agent = agent_of(hub, tmp_path / "agent")
    agent.start()
    try:
        agent.until("Connected")
        assert simulator.asked == []
    finally:
        agent.stop()


_connect = socket.create_connection


def _redirected(address: tuple[str, int], port: int, timeout: float) -> socket.socket:
    return _connect(("127.0.0.1", port) if address[0] == "192.0.2.7" else address, timeout=timeout)


def test_credentials_go_to_the_proxy_and_nowhere_else(
    hub: channel_world.Hub, simulator: ProxySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.routes["192.0.2.7:9443"] = f"127.0.0.1:{hub.port}"
    simulator.credentials = "host:ge@heim"
    monkeypatch.setenv("HTTPS_PROXY", f"http://host:ge%40heim@{simulator.address}")
    agent = agent_of(hub, tmp_path / "agent")
    agent.start()
    try:
        agent.until("Connected")
    finally:
        agent.stop()
    monkeypatch.setenv("HTTPS_PROXY", f"http://host:falsch@{simulator.address}")
    with pytest.raises(proxies.ProxyError) as caught:
        channel_module.tcp_connection("wss://192.0.2.7:9443/v1/agent")
    assert f"the proxy http://{simulator.address} (HTTPS_PROXY) answered 407 Proxy Authentication Required to CONNECT 192.0.2.7:9443" in str(caught.value)
    assert "falsch" not in str(caught.value)


@pytest.mark.parametrize("status", ["403 Forbidden", "502 Bad Gateway", "204 No Content"])
def test_a_proxy_that_refuses_is_named(hub: channel_world.Hub, simulator: ProxySimulator, tmp_path: Path, status: str) -> None:
    simulator.status = status
    agent = agent_of(hub, tmp_path / "agent")
    agent.start()
    try:
        message = agent.until("Disconnected")
    finally:
        agent.stop()
    assert f"answered {status} to CONNECT 192.0.2.7:9443; name the host in NO_PROXY if it is reached directly" in message


def test_a_proxy_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
    with pytest.raises(proxies.ProxyError, match=f"the proxy http://{address} .HTTPS_PROXY. can't be reached: Connection refused"):
        proxies.connect("hub.example", 443, 5.0)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 9000])
def test_what_is_no_proxy_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            try:
                client.sendall(answer)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(proxies.ProxyError, match=r"CONNECT hub\.example:443"):
            proxies.connect("hub.example", 443, 20.0)


def test_enrolment_goes_through_the_proxy(simulator: ProxySimulator, tmp_path: Path) -> None:
    hub = enrolment_world.Hub(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_text(hub.authority.pem())
    config = Config(hub=hub.url, channel="wss://x/", ca=str(ca))
    try:
        assert http.request(config, "GET", "/v1/enrolments/r1")[0] == 404
        assert simulator.asked == [hub.url.removeprefix("https://")]
        simulator.status = "503 Busy"
        with pytest.raises(HubUnreachable, match="answered 503 Busy to CONNECT"):
            http.request(config, "GET", "/v1/enrolments/r1")
    finally:
        hub.server.shutdown()
        hub.server.server_close()


# -- the registry --------------------------------------------------------------------------------------------------------


def pull(site: Site, tmp_path: Path) -> str:
    ca = tmp_path / "registry.pem"
    ca.write_text(site.ca)
    return pulling.pull(str(site.imgpkg), site.image, str(ca), str(tmp_path / "blobs"), str(site.target))


def test_bundles_are_pulled_through_the_proxy(site: Site, simulator: ProxySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(site, tmp_path)
    assert site.is_whole() and set(simulator.asked) == {site.image.partition("/")[0]}
    assert site.imgpkg_log.read_text() == "http\n", "imgpkg reads from this host, and asks no proxy"


def test_bundles_of_a_registry_of_no_proxy_are_pulled_directly(site: Site, simulator: ProxySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    pull(site, tmp_path)
    assert site.is_whole() and simulator.asked == []


# -- programs ------------------------------------------------------------------------------------------------------------


def test_only_programs_that_may_use_the_proxy_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://p:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    show = ["env"]
    assert "proxy" not in run_program(show, timeout=10).stdout.lower()
    found = dict(line.split("=", 1) for line in run_program(show, timeout=10, proxied=True).stdout.splitlines())
    assert found["HTTPS_PROXY"] == found["https_proxy"] == "http://p:3128"
    assert found["NO_PROXY"] == found["no_proxy"] == "10.0.0.0/8,localhost,127.0.0.0/8,::1,.svc,.cluster.local"


def test_kubeadm_gets_no_proxy_and_a_users_command_does(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, bool] = {}

    def run(argv: list[str], **more: object) -> object:
        asked[argv[0]] = bool(more.get("proxied"))
        return host.run(argv, **more)

    monkeypatch.setattr(join, "run", run)
    monkeypatch.setattr(host, "member", replace(host.member, post_commands=()))
    join.join(host.journal, host.member, ORDINARY, lambda: False)
    assert asked == {"/bin/sh": True, "kubeadm": False}


# -- containerd ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    for name in ("VALUES", "CONTAINERD_DROP_IN", "KUBELET_DROP_IN"):
        monkeypatch.setattr(runtime_proxy, name, f"{tmp_path}{getattr(runtime_proxy, name)}")
    made = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    made.begin(Member("k", "r", "b", "c", "m"))
    return made


def tree(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "etc").rglob("*") if path.is_file())


def test_containerd_gets_the_proxy_and_a_reset_takes_it_away(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_proxy.write(journal) == "" and not (tmp_path / "etc").exists(), "no proxy, no file"
    monkeypatch.setenv("HTTPS_PROXY", "http://host:ge$heim@p:3128")
    assert runtime_proxy.write(journal, ("10.244.0.0/16", "10.96.0.0/12")) == "containerd uses the proxy http://p:3128"
    values = Path(runtime_proxy.VALUES)
    assert values.stat().st_mode & 0o777 == 0o600
    lines = values.read_text().splitlines()
    assert 'HTTPS_PROXY="http://host:ge\\$heim@p:3128"' in lines
    assert 'NO_PROXY="localhost,127.0.0.0/8,::1,.svc,.cluster.local,10.244.0.0/16,10.96.0.0/12"' in lines
    for path in (runtime_proxy.CONTAINERD_DROP_IN, runtime_proxy.KUBELET_DROP_IN):
        assert "heim" not in Path(path).read_text() and Path(path).stat().st_mode & 0o777 == 0o644
    assert "UnsetEnvironment=HTTPS_PROXY HTTP_PROXY NO_PROXY https_proxy" in Path(runtime_proxy.KUBELET_DROP_IN).read_text()
    Journal(journal.path, journal.saved_dir).restore_files()
    assert not (tmp_path / "etc").exists()


def test_a_node_follows_a_changed_proxy_once(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(argv: list[str], **_: object) -> Finished:
        ran.append(" ".join(argv))
        return Finished(0, "", "")

    monkeypatch.setattr(runtime_proxy, "run", run)
    assert runtime_proxy.follow(journal) == "" and ran == [], "no proxy, nothing to do"
    monkeypatch.setenv("HTTPS_PROXY", "http://p:3128")
    for _ in range(2):
        assert runtime_proxy.follow(journal) == ""
    assert ran == ["systemctl daemon-reload", "systemctl restart containerd"]
    monkeypatch.delenv("HTTPS_PROXY")
    ran.clear()
    for _ in range(2):
        assert runtime_proxy.follow(journal) == ""
    assert ran == ["systemctl daemon-reload", "systemctl restart containerd"] and Path(runtime_proxy.VALUES).read_text() == ""


def test_a_restart_of_containerd_that_was_interrupted_is_done_again(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:3128")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runtime_proxy, "run", lambda argv, **_: (_ for _ in ()).throw(KeyboardInterrupt))
        runtime_proxy.follow(journal)
    ran: list[str] = []

    def failing(argv: list[str], **_: object) -> Finished:
        ran.append(argv[1])
        if len(ran) == 2:
            raise AgentError("restarting containerd failed")
        return Finished(0, "", "")

    monkeypatch.setattr(runtime_proxy, "run", failing)
    again = Journal(journal.path, journal.saved_dir)
    assert runtime_proxy.follow(again) == "restarting containerd failed"
    assert runtime_proxy.follow(again) == ""
    assert ran == ["daemon-reload", "restart", "daemon-reload", "restart"]


def test_the_simulator_opens_tunnels_and_nothing_else() -> None:
    simulator = ProxySimulator()
    with running(simulator) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as link:
        link.sendall(b"GET http://x/ HTTP/1.1\r\n\r\n")
        assert link.recv(100).startswith(b"HTTP/1.1 405") and simulator.asked == ["GET http://x/"]
