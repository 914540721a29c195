"""CKP, the Coredge Kubernetes Platform: upstream Kubernetes as signed packages, and the lifecycle of clusters on one's own machines."""

__version__ = "0.3.0"
