"""Hosts that are reached by SSH, with OpenSSH's own client: its configuration, agent and jump hosts are the user's."""

from ckp.site.ssh.failures import Failure, SshFailed
from ckp.site.ssh.host import SshHost
from ckp.site.ssh.settings import SshSettings

__all__ = ["Failure", "SshFailed", "SshHost", "SshSettings"]
