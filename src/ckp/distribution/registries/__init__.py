"""Registries of images: our own server, copying between registries, removal of releases, verification."""
