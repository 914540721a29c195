"""All of a lab host that a cluster could change, as lines: two snapshots of one host are compared as sets.

Left out is what changes on any host by itself: logs, caches, the time, processes' numbers. What the agent keeps in its own folder is its memory of
what it did, and so is not compared.
"""

from __future__ import annotations

from ckp.lab.lab import LabHost

SCRIPT = r"""
set -u
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache \
    -o -path /var/lib/ckp-agent -o -path /var/lib/systemd -o -path /var/lib/apt -o -path '*/__pycache__' -o -path /root/ckp-agent \) -prune \
    -o -printf 'file %p %y %m %u:%g %l\n'
find / /var/lib/containerd /var/lib/kubelet /var/lib/etcd /var/lib/ckp -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \
    -o -path /var/tmp -o -path /var/log -o -path /var/cache -o -path /var/lib/ckp-agent -o -path /var/lib/systemd \
    -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path '*/__pycache__' \
    -o -path /root/ckp-agent -o -path /etc/ld.so.cache \) -prune -o -type f -print0 | xargs -0 sha256sum | sed 's/^/content /'
dpkg-query -W -f 'package ${Package} ${Version} ${Status}\n'
ip -o link | sed -E 's/^[0-9]+: ([^:@]+).*mtu ([0-9]+).*/link \1 mtu \2/'
ip -o address | awk '{print "address", $2, $3, $4}'
for family in -4 -6; do
    ip $family rule | sed "s/^/rule $family /"
    ip $family route show table all | sed -E "s/^/route $family /; s/ +$//"
done
awk '{print "mount", $5}' /proc/self/mountinfo
for program in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
    case $program in
        *-legacy) tables=$(cat /proc/net/$(test ${program%-legacy} = iptables && echo ip_tables_names || echo ip6_tables_names) 2>/dev/null) ;;
        *) tables=all ;;
    esac
    # how a rule refuses by default is shown or not, by who made it
    test -z "$tables" || $program-save 2>/dev/null | grep -v '^#' | sed -E "s/\[[0-9]+:[0-9]+\]//; s/ --reject-with icmp6?-port-unreachable//; s/^/$program /"
done
nft list tables | sed 's/^/nft /'
ipset list -n | sed 's/^/ipset /'
cat /proc/swaps | sed 1d | awk '{print "swap", $1}'
for folder in net vm kernel; do
    grep -rs . /proc/sys/$folder --include='*' 2>/dev/null | grep -vE \
        'random|/stat|inode|dentry|file-nr|ns_last_pid|entropy|conntrack_count|sched_|pty/nr|hostname|nf_conntrack|/host0/|neigh/|/conf/(lxc|cilium)|hugepages|perf_event|numa|cad_pid|fragment|base_reachable|uuid|flush|if_|drop_caches'
done | sed 's/^/sysctl /'
systemctl list-unit-files --no-legend --no-pager | awk '{print "unit", $1, $2}'
find /sys/fs/bpf -mindepth 1 2>/dev/null | sed 's/^/bpf /'
find /sys/fs/cgroup -type d \( -name 'kube*' -o -name 'k8s*' -o -name 'cri-*' \) 2>/dev/null | sed 's/^/cgroup /'
ls /run/netns 2>/dev/null | sed 's/^/netns /'
ps -eo comm= | sort -u | grep -vE '^(ps|sh|sort|grep|sed|kworker.*|awk|find|systemd-.*|\(.*\))$' | sed 's/^/process /'
true
"""


def snapshot(host: LabHost) -> set[str]:
    """What is on the host now."""
    return set(host.run(["bash", "-c", SCRIPT], timeout=180, what="looking at all of the host").stdout.splitlines())


def changes(before: set[str], after: set[str]) -> list[str]:
    """What came and what went, as a person reads it; empty if nothing did."""
    return [f"+ {line}" for line in sorted(after - before)] + [f"- {line}" for line in sorted(before - after)]
