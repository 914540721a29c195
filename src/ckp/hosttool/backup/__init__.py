"""Backups that a site's management hosts make by themselves (docs/adr/0036-backups-by-management-hosts.md)."""
