"""What is installed into the cluster besides, each a line of cluster.yaml: off by default, applied, proved, removed.

- ``table``: which there are, as data;        ``objects``: their API objects;
- ``record``: which of them a cluster has, and what goes when one is taken out of cluster.yaml.

Their images come by the lock and the cache as all others do, and go to machines only where the addon is on. What proves them is
``verify/addons.py``.
"""
