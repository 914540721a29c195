module ckp.coredge.io/lock/cri-tools

go 1.16

require github.com/kubernetes-sigs/cri-tools v1.27.0
