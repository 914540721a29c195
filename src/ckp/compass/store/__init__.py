"""SQL: the tables, their migrations, and repositories that give the services rows by name. No decision is taken here."""
