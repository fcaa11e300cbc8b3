"""The race: the same cluster on the same lab machines, by kubeadm and by this toolkit (docs/race.md).

race.py        the rounds, one after the other, and the raw figures
materials.py   what kubeadm needs on a machine: its binary, and the images, made of the same binaries that the toolkit uses
kubeadm.py     kubeadm's run: everything in place before the clock starts, then init and the joins
toolkit.py     the toolkit's run: bare machines, and the command `apply`
watch.py       when the API answers, when which node is Ready: one observer for both
checks.py      the proof: a kubeconfig and the official client, the same code for both
scale.py       what the controller spends on 5, 50 and 200 machines
summary.py     medians, ratios and the page's tables, out of the raw figures
plots.py       the pictures of docs/race.md

None of it is part of the product.
"""
