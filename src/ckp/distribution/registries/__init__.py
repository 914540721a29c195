"""Registries of images: a server of our own, copies, clean-up, and verification of what lies in one."""
