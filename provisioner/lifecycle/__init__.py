"""What is done to a cluster in the course of its life, beside `apply`.

- ``etcd``: defragmentation, and the cure of a full database.
- ``reset``: machines go back to what they were.
- ``drain``: the pods moved off a node within their budgets, and what a machine that is gone leaves behind; ``pods`` is what it
  must know of pods and budgets.
"""
