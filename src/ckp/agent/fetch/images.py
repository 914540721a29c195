"""Pulling container images before they are needed, several in parallel."""

from __future__ import annotations

import threading
import time
from typing import Callable, Optional

from ckp.agent.system import prepare
from ckp.hostkit.errors import AgentError, Cancelled
from ckp.hostkit.processes import have, run

IMAGE_SECONDS = 900.0


class ImagePulls:
    """Pulls images in background threads while other steps run, so that later steps need not wait for the network.

    Args:
        cancelled: when it returns True, pulls that run are ended, no other is begun, and `wait` raises Cancelled.
    """

    def __init__(self, images: list[str], parallel: int = 3, cancelled: Callable[[], bool] = lambda: False) -> None:
        self._todo = list(images)
        self._cancelled = cancelled
        self._failed: dict[str, str] = {}
        self._done: set[str] = set()
        self._lock = threading.Condition()
        for _ in range(parallel):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._todo or self._cancelled():
                    return
                image = self._todo.pop(0)
            problem = ""
            try:
                pull_image(image, cancelled=self._cancelled)
            except AgentError as error:
                problem = error.sentence()
            with self._lock:
                if problem:
                    self._failed[image] = problem
                else:
                    self._done.add(image)
                self._lock.notify_all()

    def wait(self, images: list[str]) -> None:
        """Wait until these images are pulled. AgentError if one can't be pulled, or after IMAGE_SECONDS; Cancelled."""
        deadline = time.monotonic() + IMAGE_SECONDS
        with self._lock:
            while True:
                if self._cancelled():
                    raise Cancelled("pulling images was cancelled: the desired state has changed, or the agent stops")
                for image in images:
                    if image in self._failed:
                        raise AgentError(
                            f"the image {image} can't be pulled",
                            details=self._failed[image],
                            resolution="check the registry and its CA",
                            reason="ImagePullFailed",
                        )
                if all(image in self._done for image in images):
                    return
                if time.monotonic() > deadline:
                    raise AgentError(f"the images were not pulled within {IMAGE_SECONDS:.0f} s", reason="ImagePullFailed")
                self._lock.wait(1.0)


def pull_image(image: str, seconds: float = IMAGE_SECONDS, cancelled: Optional[Callable[[], bool]] = None) -> None:
    """Pull one image into the container runtime, unless it is there; a failed pull is retried once, each within `seconds`. Raises ProcessFailed, Cancelled."""
    socket_path = prepare.CONTAINERD_SOCKET[len("unix://") :]
    if have("crictl"):
        endpoint = f"--image-endpoint={prepare.CONTAINERD_SOCKET}"
        if run(["crictl", endpoint, "inspecti", "-q", image], timeout=60, check=False).code == 0:
            return
        argv = ["crictl", endpoint, f"--timeout={seconds:.0f}s", "pull", image]
    else:
        argv = ["ctr", "--address", socket_path, "-n", "k8s.io", "images", "pull", "--hosts-dir", prepare.CERTS_D, image]
    if run(argv, timeout=seconds, check=False, cancelled=cancelled).code != 0:
        time.sleep(1)
        run(argv, timeout=seconds, what=f"pulling {image}", reason="ImagePullFailed", cancelled=cancelled)
