"""Helpers of all tools that run on a host. Python 3.9 and its standard library."""
