"""The file that describes a site, `site.yaml`: its model, how it is read, a template of it, and its reference."""
