"""A place where CKP runs: installation of the management layer, publishing, enrolment of hosts."""
