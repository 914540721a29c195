"""What is set of a cluster that lives."""

from __future__ import annotations

import json
import ssl
import time
from urllib.parse import urlsplit

import pytest
import yaml
from cryptography import x509

from ckp.cli.up import kubeconfig_path
from tests.e2e.conftest import World, ckp

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def test_a_name_that_is_added_later_is_served_by_the_same_api_server(well: World) -> None:
    """All of the way: Compass, controllers, cert-manager, the kubelet of the management cluster, the API server that reads its files again."""
    server = urlsplit(yaml.safe_load(kubeconfig_path("demo").read_text())["clusters"][0]["cluster"]["server"])

    def names() -> set[str]:
        pem = ssl.get_server_certificate((str(server.hostname), int(server.port or 443)), timeout=20)
        found = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}

    def pods() -> dict[str, list[int]]:
        labels = "app.kubernetes.io/component=apiserver,cluster.x-k8s.io/cluster-name=demo"
        found = json.loads(well.management("get", "pods", "-n", "ckp-default-default", "-l", labels, "-o", "json").stdout)["items"]
        return {pod["metadata"]["uid"]: [item["restartCount"] for item in pod["status"]["containerStatuses"]] for pod in found}

    well.wait(lambda: len(pods()) == 1, "no API server of before is ending", timeout=180)
    before, running = names(), pods()
    assert not {"late.demo.example", "203.0.113.7"} & before
    started = time.monotonic()
    try:
        ckp("cluster", "set", "demo", "--cert-san", "late.demo.example", "--cert-san", "203.0.113.7")
        well.wait(lambda: names() == before | {"late.demo.example", "203.0.113.7"}, "the API server serves the new names", timeout=240)
        print(f"served after {time.monotonic() - started:.0f} s")
        assert pods() == running, "it was not started again"
    finally:
        ckp("cluster", "set", "demo", "--no-cert-sans")
