"""CKP's controllers: the BYOH infrastructure provider, the hosted control plane, addons, and the fourteen steps."""
