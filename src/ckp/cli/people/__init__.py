"""People and rights: signing in, domains, projects, users, roles, service accounts, the audit log."""
