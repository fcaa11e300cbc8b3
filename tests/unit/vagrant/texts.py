"""What Vagrant 2.3 and machines print: taken from a drill (libvirt), else as Vagrant's template makes it."""

from __future__ import annotations

LIBVIRT = """\
Host cp-1
  HostName 192.168.121.165
  User vagrant
  Port 22
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile /srv/demo/.vagrant/machines/cp-1/libvirt/private_key
  IdentitiesOnly yes
  LogLevel FATAL

Host worker-1
  HostName 192.168.121.73
  User vagrant
  Port 22
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile /srv/demo/.vagrant/machines/worker-1/libvirt/private_key
  IdentitiesOnly yes
  LogLevel FATAL

"""

VIRTUALBOX = """\
Host cp-1
  HostName 127.0.0.1
  User vagrant
  Port 2222
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile "/home/me/my clusters/.vagrant/machines/cp-1/virtualbox/private_key"
  IdentitiesOnly yes
  LogLevel FATAL

Host worker-1
  HostName 127.0.0.1
  User vagrant
  Port 2200
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile "/home/me/my clusters/.vagrant/machines/worker-1/virtualbox/private_key"
  IdentitiesOnly yes
  LogLevel FATAL

"""

# `config.ssh.insert_key = false`, as Vagrant 2.4 prints it
WELL_KNOWN = """\
Host default
  HostName 192.168.121.20
  User vagrant
  Port 22
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile /root/.vagrant.d/insecure_private_keys/vagrant.key.ed25519
  IdentityFile /root/.vagrant.d/insecure_private_keys/vagrant.key.rsa
  IdentitiesOnly yes
  LogLevel FATAL
  ForwardAgent yes

"""

REMOTE = """\
Host cp-1
  HostName 192.168.121.20
  User vagrant
  Port 22
  PasswordAuthentication no
  IdentityFile /srv/demo/.vagrant/machines/cp-1/libvirt/private_key
  LogLevel FATAL
  ProxyCommand ssh 'hypervisor.example.org' -l 'me' nc -q0 %h %p

"""

STATUS = """\
1795763360,cp-1,metadata,provider,libvirt
1795763360,worker-1,metadata,provider,libvirt
1795763360,cp-1,provider-name,libvirt
1795763360,cp-1,state,{cp}
1795763360,cp-1,state-human-short,{cp}
1795763360,cp-1,state-human-long,The Libvirt domain is running. To stop this machine%!(VAGRANT_COMMA) you can run\\n`vagrant halt`.
1795763360,worker-1,provider-name,libvirt
1795763360,worker-1,state,{worker}
1795763360,worker-1,state-human-short,{worker}
1795763360,,ui,info,Current machine states:\\n\\ncp-1                      running (libvirt)\\nworker-1      running (libvirt)
"""

ANSWER_LIBVIRT = """\
[{"ifindex":2,"ifname":"eth0","flags":["BROADCAST","MULTICAST","UP","LOWER_UP"],"mtu":1500,"qdisc":"fq_codel","operstate":"UP",\
"group":"default","txqlen":1000,"altnames":["enp4s0"],"addr_info":[{"family":"inet","local":"ADDRESS","prefixlen":24,"metric":1024,\
"broadcast":"192.168.121.255","scope":"global","dynamic":true,"label":"eth0","valid_life_time":3276,"preferred_life_time":3276}]}]

[{"dst":"default","gateway":"192.168.121.1","dev":"eth0","protocol":"dhcp","prefsrc":"ADDRESS","metric":1024,"flags":[]}]

qemu
"""

# after a cluster, with Docker beside it
ANSWER_VIRTUALBOX = """\
[{},{"ifname":"eth0","addr_info":[{"family":"inet","local":"10.0.2.15","prefixlen":24,"scope":"global","dynamic":true}]},\
{"ifname":"eth1","addr_info":[{"family":"inet","local":"ADDRESS","prefixlen":24,"scope":"global"}]},\
{"ifname":"docker0","addr_info":[{"family":"inet","local":"172.17.0.1","prefixlen":16,"scope":"global"}]},\
{"ifname":"flannel.1","addr_info":[{"family":"inet","local":"10.244.0.0","prefixlen":32,"scope":"global"}]},\
{"ifname":"cni0","addr_info":[{"family":"inet","local":"10.244.0.1","prefixlen":24,"scope":"global"}]}]

[{"dst":"default","gateway":"10.0.2.2","dev":"eth0","flags":[]}]

oracle
"""
