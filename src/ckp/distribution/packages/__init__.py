"""Programs to signed deb and rpm packages."""
