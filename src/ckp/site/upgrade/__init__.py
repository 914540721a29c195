"""Moves a site from the version of CKP before to this one, and back again if the new one does not become ready."""
