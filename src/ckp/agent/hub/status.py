"""What `ckp-agent status` shows: a small file that the running agent keeps current."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from ckp.agent.journal import now
from ckp.hostkit.files import atomic_write, read_text


class Status:
    """Topics (enrolment, channel, work), each with a state, a message and the time since when. Written only when something changes."""

    def __init__(self, state_dir: str) -> None:
        self.path = os.path.join(state_dir, "status.json")
        self._lock = threading.Lock()
        self._unwritten = False
        try:
            loaded = json.loads(read_text(self.path, "{}"))
        except ValueError:
            loaded = {}
        self.topics: dict[str, dict[str, Any]] = loaded if isinstance(loaded, dict) else {}

    def set(self, topic: str, state: str, message: str = "") -> bool:
        """Set a topic; returns whether it changed. A full disk must not stop the agent, so a failed write is retried by flush()."""
        with self._lock:
            old = self.topics.get(topic, {})
            if old.get("state") == state and old.get("message") == message:
                return False
            since = old["since"] if old.get("state") == state else now()
            self.topics[topic] = {"state": state, "message": message, "since": since}
            self._write()
            return True

    def flush(self) -> None:
        """Retry a write that failed before, on a full disk. Does nothing if there is none."""
        with self._lock:
            if self._unwritten:
                self._write()

    def _write(self) -> None:
        self._unwritten = True
        try:
            atomic_write(self.path, json.dumps(self.topics, indent=1), mode=0o644)
        except OSError:
            return
        self._unwritten = False

    def render(self) -> str:
        """As text for a terminal."""
        lines = []
        for topic, entry in self.topics.items():
            lines.append(f"{topic + ':':<12}{entry.get('state', '?')} (since {entry.get('since', '?')})")
            if entry.get("message"):
                lines.append(f"{'':<12}{entry['message']}")
        return "\n".join(lines) or "no status yet: the agent has not run"
