"""The property test of resuming: a driver that is killed at random moments, and what must hold after the next `apply`.

``site.py``: the cluster under test. ``scenarios.py``: what gives `apply` work. ``blows.py``: what happens to it meanwhile.
``machines.py``, ``cluster.py`` and ``controller.py``: what must hold afterwards. ``record.py``: the figures.
"""
