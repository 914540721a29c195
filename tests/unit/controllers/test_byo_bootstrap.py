"""What becomes of Cluster API's bootstrap data on its way to a host: the node gets the host's name, whatever the person's template says."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ckp.controllers.providers.byo.bootstrap import JOIN_CONFIG, PATCHES, parse_cloud_config


def joined(document: dict[str, Any], node_name: str = "worker-1") -> dict[str, Any]:
    """The JoinConfiguration that the host gets."""
    cloud_config = {"write_files": [{"path": JOIN_CONFIG, "content": yaml.safe_dump(document)}], "runcmd": ["kubeadm join"]}
    data = parse_cloud_config(yaml.safe_dump(cloud_config), node_name)
    found = yaml.safe_load(data.files[0].content)
    assert isinstance(found, dict)
    return found


def join_configuration(version: str = "v1beta3", **registration: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"apiVersion": f"kubeadm.k8s.io/{version}", "kind": "JoinConfiguration", "discovery": {"bootstrapToken": {"token": "t"}}}
    return {**document, "nodeRegistration": registration} if registration else document


def test_the_node_is_called_as_the_host_is() -> None:
    found = joined(join_configuration(), "worker-1-2")
    assert found["nodeRegistration"] == {"name": "worker-1-2"}
    assert found["patches"] == {"directory": PATCHES}


def test_a_name_that_looks_like_a_number_stays_a_text() -> None:
    assert joined(join_configuration(), "007")["nodeRegistration"]["name"] == "007"


@pytest.mark.parametrize("name", ["worker-1", "another", "{{ ds.meta_data.local_hostname }}", ""])
def test_a_name_of_the_template_never_differs_from_the_hosts(name: str) -> None:
    found = joined(join_configuration(name=name, taints=[], criSocket="unix:///run/x.sock"))
    assert found["nodeRegistration"] == {"name": "worker-1", "taints": [], "criSocket": "unix:///run/x.sock"}


def test_an_argument_of_the_template_can_not_rename_the_node() -> None:
    before = {"hostname-override": "another", "v": "4"}
    assert joined(join_configuration(kubeletExtraArgs=before))["nodeRegistration"]["kubeletExtraArgs"] == {"v": "4"}
    listed = [{"name": key, "value": value} for key, value in before.items()]
    found = joined(join_configuration("v1beta4", kubeletExtraArgs=listed))
    assert found["nodeRegistration"]["kubeletExtraArgs"] == [{"name": "v", "value": "4"}]
