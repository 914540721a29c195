"""CKP's providers: the BYOH infrastructure provider, the managed control plane, addons, and the fourteen steps."""
