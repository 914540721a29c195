"""What the hub counts of its sessions."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """One set for each server of sessions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connected = Gauge("ckp_hub_connected_hosts", "Hosts with a live channel", registry=registry)
        self.refused = Counter("ckp_hub_refused_total", "Connections that were refused", ["reason"], registry=registry)
        self.frames = Counter("ckp_hub_frames_total", "Frames from hosts", ["type"], registry=registry)
        self.sent = Counter("ckp_hub_desired_sent_total", "Desired states sent", registry=registry)
        self.renewals = Counter("ckp_hub_renewals_total", "Certificates that were renewed over the channel", registry=registry)
        self.writes = Counter("ckp_hub_status_writes_total", "Writes of ByoHost.status", ["outcome"], registry=registry)
