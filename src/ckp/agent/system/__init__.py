"""The operating system of this host: facts about it, and changes to it."""
