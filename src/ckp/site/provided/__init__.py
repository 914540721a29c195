"""What a site uses that its owner provides: StorageClasses and folders, load balancers, names."""
