"""The agent on a host. It needs system Python 3.9 or newer, the standard library and the bundled `websockets`.

This file imports nothing on purpose, so that each command loads only what it needs.
"""
