"""The one-file tool for hosts: the agent, and the standalone installer, behind one command."""
