"""Source to signed bundle: toolchains, builds, packages, images, bundles, the registry."""
