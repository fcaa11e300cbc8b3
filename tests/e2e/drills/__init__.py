"""The kit of the drills: `load.py` runs on a machine of the cluster, `kit.py` drives it, `figures.py` makes figures of what it saw.

- ``load``: clients of the API and of a Service, as one script of the standard library that is sent through SSH;
- ``figures``: pure: gaps, lost writes, times until something happened, bars; no clock, no network;
- ``kit``: starts the load, breaks machines, waits for them, reads every acknowledged value back;
- ``vanish``: the drill that most others are made of, and the bars;
- ``record``: what every drill found, as a table and as JSON.
"""
