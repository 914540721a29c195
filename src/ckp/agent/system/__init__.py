"""The operating system of this host: what it is, and what is changed in it."""
