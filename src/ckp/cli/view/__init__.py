"""How commands show things: tables, data, and the progress of long work."""
