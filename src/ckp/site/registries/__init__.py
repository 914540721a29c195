"""Registries that were there before the site: pushing to them, what hosts pull with, and what of their content is the site's."""
