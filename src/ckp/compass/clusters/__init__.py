"""Clusters: requests, views and the objects that make one."""
