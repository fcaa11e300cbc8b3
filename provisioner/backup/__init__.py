"""A cluster's state in one file, and back again.

- ``archive``: the file: etcd's snapshot, what the workspace holds that cannot be made again, and a signed manifest;
- ``seal``: its encryption, with age;
- ``snapshot``: etcd's snapshot from a healthy member, verified;
- ``restore``: the cluster as it was, on the machines of cluster.yaml.
"""
