"""Read models of CKP's own kinds: `ByoHost.of(obj)` reads an object as the API server returns it.

They are for reading only. What is written (manifests, patches, server-side apply) stays plain dicts, in which unknown fields survive.
The CRDs' schemas are generated from these models (ckp.api.crds).
"""
