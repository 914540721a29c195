"""Sources to programs: locks, toolchains, components, and what a Go program says of itself."""
