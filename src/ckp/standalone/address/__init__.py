"""The virtual address of a cluster with several masters: which of them has it, and the service that adds and removes it."""
