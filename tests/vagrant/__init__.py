"""`make drill-vagrant`: virtual machines by `vagrant up`, a cluster on them by two commands, and all of it gone again.

Virtual machines have what the lab's have not: a kernel and modules of their own, cgroup v2, DHCP, and a login user who is not root.
"""
