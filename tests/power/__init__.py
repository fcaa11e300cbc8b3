"""The power-cut drill: a cluster on virtual machines with kernels of their own loses its power in the midst of writing.

`make drill-power-cut` runs it. ``image.py`` makes the machines' disk, ``machines.py`` their network and processes, ``writer.py``
writes and reads back, ``figures.py`` is the result, ``drill.py`` the order of things.
"""
