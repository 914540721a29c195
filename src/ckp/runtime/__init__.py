"""The controller runtime: informer, work queue, leader lease, level-triggered reconcile."""
