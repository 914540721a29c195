"""The verification of packages, bundles and repositories: on hosts and where releases are made, there is this one."""
