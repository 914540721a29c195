"""One file per package manager: apt/dpkg is run here every day, dnf/rpm is written after its documentation."""
