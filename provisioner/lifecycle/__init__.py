"""What is done to a cluster in the course of its life, beside `apply`.

- ``etcd``: defragmentation, and the cure of a full database.
"""
