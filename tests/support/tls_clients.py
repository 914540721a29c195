"""Programs of several languages that verify a TLS server on this machine, each by a file of CAs: those that are here of them."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.distribution.builder.toolchain import ensure_toolchain, go_environment
from ckp.kits.processes import run

# As Python 3.13 verifies (VERIFY_X509_STRICT), but without its leave to stop at an intermediate CA, which other programs don't give.
PYTHON = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT
context.verify_flags &= ~getattr(ssl, "VERIFY_X509_PARTIAL_CHAIN", 0x80000)
with socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=20) as tcp:
    context.wrap_socket(tcp, server_hostname="localhost").close()
"""
NODE = """
const [ca, port] = process.argv.slice(1)
const options = {host: "127.0.0.1", port, servername: "localhost", ca: require("fs").readFileSync(ca)}
require("tls").connect(options, () => process.exit(0)).on("error", error => { console.error(error.message); process.exit(1) })
"""
JAVA = """
import java.io.*; import java.security.KeyStore; import java.security.cert.*; import javax.net.ssl.*;
class Verify {
    public static void main(String[] arguments) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(new FileInputStream(arguments[0]), "changeit".toCharArray());
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("localhost", Integer.parseInt(arguments[1]));
        SSLParameters parameters = socket.getSSLParameters();
        parameters.setEndpointIdentificationAlgorithm("HTTPS");
        socket.setSSLParameters(parameters);
        socket.startHandshake();
    }
}
"""
GO = """
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	ca, address, name := os.Args[1], os.Args[2], os.Args[3]
	pem, err := os.ReadFile(ca)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(pem) {
		err = fmt.Errorf("no certificate in %s", ca)
	}
	if err == nil {
		_, err = tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", address, &tls.Config{RootCAs: pool, ServerName: name})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("verified")
}
"""
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
CLIENTS = (*(f"python{version}" for version in PYTHONS), "openssl", "node", "java", "go")


def _run(*command: str | Path, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)
    return "" if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-2000:] or f"exit code {done.returncode}"


def interpreter(version: str) -> str:
    """A Python of this version with TLS: in the PATH, or one that pyenv keeps; '' if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(str(path) for path in pyenv.glob(f"versions/{version}.*/bin/python3"))
    for path in filter(None, [f"/usr/bin/python{version}", *kept, shutil.which(f"python{version}")]):
        if Path(path).exists():
            said = subprocess.run([path, "-c", "import sys, ssl; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True, check=False)
            if said.stdout.strip() == version:
                return path
    return ""


@cache
def go_program() -> bytes:
    """A static program that verifies a server: the CA's file, its address, its name. Built by the Go of the release's kubectl, with what it has compiled."""
    catalog = Catalog()
    go = ensure_toolchain(catalog, catalog.choose(catalog.release("v1.35.1"), "kubernetes", "lab").source.go)
    with tempfile.TemporaryDirectory(prefix="ckp-go-") as work:
        (Path(work) / "main.go").write_text(GO)
        argv: list[str | Path] = [go, "build", "-trimpath", "-ldflags=-s -w", "-o", "verify", "main.go"]
        run(argv, cwd=Path(work), env=go_environment(), timeout=600, what="building a client in Go")
        return (Path(work) / "verify").read_bytes()


def client(name: str, folder: Path) -> Callable[[Path, int], str] | None:
    """What verifies the server on a port of this machine as `localhost` by a file of CAs: '' if it accepts it, else what it says; None if it is not here."""
    if name.startswith("python"):
        python = interpreter(name.removeprefix("python"))
        return (lambda ca, port: _run(python, "-I", "-c", PYTHON, ca, str(port))) if python else None
    if name == "go":
        verify = folder / "verify"
        verify.write_bytes(go_program())
        verify.chmod(0o755)
        return lambda ca, port: _run(verify, ca, f"127.0.0.1:{port}", "localhost")
    if (program := shutil.which(name)) is None or (name == "java" and not (shutil.which("javac") and shutil.which("keytool"))):
        return None
    if name == "node":
        return lambda ca, port: _run(program, "-e", NODE, ca, str(port))
    if name == "openssl":
        strict = ("-x509_strict", "-verify_return_error", "-verify_hostname", "localhost", "-servername", "localhost")
        return lambda ca, port: _run(program, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", ca, *strict)

    def java(ca: Path, port: int) -> str:
        store, source = folder / "trust.p12", folder / "Verify.java"
        source.write_text(JAVA)
        store.unlink(missing_ok=True)
        imported = _run("keytool", "-importcert", "-noprompt", "-alias", "ca", "-file", ca, "-keystore", store, "-storepass", "changeit")
        return imported or _run(program, source, store, str(port))

    return java


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not accept the certificate breaks off; that is what the tests are about."""


@contextmanager
def tls_server(certificate: Path, key: Path) -> Iterator[int]:
    """A server on loopback that answers every GET with a Node called `one`; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = _Server(("127.0.0.1", 0), _Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
