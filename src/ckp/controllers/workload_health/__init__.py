"""Whether a workload cluster does what a cluster is for: seen from inside, by a pod of its own."""
