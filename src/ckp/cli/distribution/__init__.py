"""Commands about releases, packages, images and keys."""
