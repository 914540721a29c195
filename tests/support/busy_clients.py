"""Clients of a cluster that never rest, and count what failed: what an upgrade, a rollout or the loss of a host is measured by.

Each is a thread of its own. A client does what a careful program does, and nothing else: it waits at most `TIMEOUT`, it does not try again
unless the answer says when (429 with Retry-After, which an API server that ends gives: client-go, rest/with_retry.go), and a watch that ends
goes on from the last resource version that it has seen.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

TIMEOUT = 10.0
RETRIES = 10
"""As client-go's."""
KEPT_FAILURES = 50
"""How many failures are kept with their text; all are counted."""


@dataclass
class Count:
    """What one client did.

    Args:
        done: requests that were answered as they should be.
        failed: those that were not.
        gap: the longest time in seconds between two good answers.
    """

    done: int = 0
    failed: int = 0
    gap: float = 0.0
    gap_at: float = 0.0
    said: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For a person."""
        return f"{self.done} answered, {self.failed} failed, longest gap {self.gap:.1f} s (at {self.gap_at:.0f} s)"


class Busy(threading.Thread):
    """Does the same again and again until it is ended.

    Args:
        once: one request; it raises where the answer is not what it should be.
        pause: seconds between two requests.
    """

    def __init__(self, name: str, once: Callable[[], object], pause: float = 0.0) -> None:
        super().__init__(name=name, daemon=True)
        self.once, self.pause, self.count = once, pause, Count()
        self._over = threading.Event()

    def run(self) -> None:
        started = last = time.monotonic()
        while not self._over.is_set():
            try:
                self.once()
            except Exception as error:  # whatever it is, it is a request that failed
                self.count.failed += 1
                if len(self.count.said) < KEPT_FAILURES:
                    self.count.said.append(f"{time.monotonic() - started:.1f} s: {type(error).__name__}: {str(error)[:300]}")
            else:
                now = time.monotonic()
                if now - last > self.count.gap:
                    self.count.gap, self.count.gap_at = now - last, now - started
                self.count.done, last = self.count.done + 1, now
            self._over.wait(self.pause)

    def end(self) -> Count:
        """Wait for the request that is under way, and give the counts."""
        self._over.set()
        self.join(TIMEOUT * 4)
        assert not self.is_alive(), f"{self.name} does not end"
        return self.count


@dataclass
class Api:
    """How a client reaches an API server."""

    server: str
    context: ssl.SSLContext

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.server, verify=self.context, trust_env=False, timeout=TIMEOUT)


def asked(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer, asked for again where the server says when."""
    for _ in range(RETRIES):
        answer = ask()
        if answer.status_code != httpx.codes.TOO_MANY_REQUESTS or "retry-after" not in answer.headers:
            break
        time.sleep(min(float(answer.headers["retry-after"]), TIMEOUT))
    return answer.raise_for_status()


def reads(api: Api) -> Callable[[], object]:
    """Reads over a connection that is kept."""
    client = api.client()

    def once() -> None:
        asked(lambda: client.get("/api/v1/namespaces/default/endpoints/kubernetes"))

    return once


def connections(api: Api) -> Callable[[], object]:
    """A new connection for each request."""

    def once() -> None:
        with api.client() as client:
            asked(lambda: client.get("/api/v1/namespaces/default"))

    return once


class Written:
    """Writes a ConfigMap with rising numbers, and watches it over another connection: no number that was acknowledged may be missing in between.

    A watch may join changes of one object that it has not sent yet, so each number is an object of its own.
    """

    NAMESPACE = "/api/v1/namespaces/default/configmaps"

    def __init__(self, api: Api) -> None:
        self.api, self.acknowledged, self.number = api, set[int](), 0
        self.seen: set[int] = set()
        self.watches = 0
        self.broken: list[str] = []
        self._client, self._over = api.client(), threading.Event()
        self._version = self._client.get(self.NAMESPACE, params={"limit": 1}).raise_for_status().json()["metadata"]["resourceVersion"]
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def once(self) -> None:
        self.number += 1
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"busy-{self.number}", "labels": {"busy": "yes"}}}
        asked(lambda: self._client.post(self.NAMESPACE, json=body))
        self.acknowledged.add(self.number)
        if self.number > 50:
            self._client.delete(f"{self.NAMESPACE}/busy-{self.number - 50}")

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self._one_watch()
            except (httpx.HTTPError, json.JSONDecodeError) as error:
                self.broken.append(f"{type(error).__name__}: {error}")
                self._over.wait(0.05)

    def _one_watch(self) -> None:
        asked = {"watch": "1", "labelSelector": "busy=yes", "resourceVersion": self._version, "timeoutSeconds": "600", "allowWatchBookmarks": "true"}
        self.watches += 1
        with self.api.client() as client, client.stream("GET", self.NAMESPACE, params=asked, timeout=httpx.Timeout(TIMEOUT, read=5)) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    self.broken.append(f"the watch could not go on from {self._version}: {event['object'].get('message')}")
                    self._over.set()
                    return
                self._version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "ADDED":
                    self.seen.add(int(event["object"]["metadata"]["name"].rpartition("-")[2]))
                if self._over.is_set():
                    return

    def lost(self) -> list[int]:
        """Ends the watch, and gives the acknowledged numbers that it has not told."""
        deadline = time.monotonic() + TIMEOUT
        while self.acknowledged - self.seen and time.monotonic() < deadline:
            time.sleep(0.1)
        self._over.set()
        return sorted(self.acknowledged - self.seen)
