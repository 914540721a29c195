"""The hosted control plane: CA, etcd, API server with konnectivity, kubeadm's phases, kubeconfig."""
