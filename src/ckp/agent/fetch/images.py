"""Pulling container images before they are needed, several in parallel."""

from __future__ import annotations

import threading
import time
from typing import Callable

from ckp.agent.system import prepare
from ckp.hostkit.errors import AgentError, Cancelled
from ckp.hostkit.processes import have, run

IMAGE_SECONDS = 900.0
"""Unless a cluster says otherwise (Membership.image_fetch_seconds)."""


class ImagePulls:
    """Pulls images in background threads while other steps run, so that later steps need not wait for the network.

    Args:
        seconds: how long each pull may take, and all of them together from when they are waited for.
    """

    def __init__(self, images: list[str], parallel: int = 3, seconds: float = IMAGE_SECONDS) -> None:
        self._todo = list(images)
        self._seconds = seconds
        self._stopped = False
        self._failed: dict[str, str] = {}
        self._done: set[str] = set()
        self._lock = threading.Condition()
        for _ in range(parallel):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._todo:
                    return
                image = self._todo.pop(0)
            problem = ""
            try:
                pull_image(image, self._seconds, lambda: self._stopped)
            except AgentError as error:
                problem = error.sentence()
            with self._lock:
                if problem:
                    self._failed[image] = problem
                else:
                    self._done.add(image)
                self._lock.notify_all()

    def wait(self, images: list[str], cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until these images are pulled.

        Raises:
            AgentError: one can't be pulled, or the time is over; those that are being pulled still are.
            Cancelled: `cancelled` returned True; nothing is pulled any more.
        """
        deadline = time.monotonic() + self._seconds
        with self._lock:
            while True:
                if cancelled():
                    self._stopped = True
                    self._todo.clear()
                    raise Cancelled("fetching images was cancelled: the desired state has changed, or the agent stops")
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
                    raise AgentError(f"the images were not pulled within {self._seconds:.0f} s", reason="ImagePullFailed")
                self._lock.wait(min(1.0, max(0.0, deadline - time.monotonic()) + 0.01))


def pull_image(image: str, seconds: float = IMAGE_SECONDS, cancelled: Callable[[], bool] | None = None) -> None:
    """Pull one image into the container runtime, unless it is there; within `seconds`, and once more if it fails before they are over.

    Raises:
        ProcessFailed: it can't be pulled.
        Cancelled: `cancelled` returned True.
    """
    socket_path = prepare.CONTAINERD_SOCKET[len("unix://") :]
    if have("crictl"):
        endpoint = f"--image-endpoint={prepare.CONTAINERD_SOCKET}"
        if run(["crictl", endpoint, "inspecti", "-q", image], timeout=60, check=False, cancelled=cancelled).code == 0:
            return
        argv = ["crictl", endpoint, f"--timeout={seconds:.0f}s", "pull", image]
    else:
        argv = ["ctr", "--address", socket_path, "-n", "k8s.io", "images", "pull", "--hosts-dir", prepare.CERTS_D, image]
    what = f"pulling {image}"
    if run(argv, timeout=seconds, what=what, reason="ImagePullFailed", check=False, cancelled=cancelled).code != 0:
        time.sleep(1)
        run(argv, timeout=seconds, what=what, reason="ImagePullFailed", cancelled=cancelled)
