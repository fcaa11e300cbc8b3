"""What stands behind the pytest plugin (``provisioner/pytest_plugin.py``): a cluster in the hands of tests.

``cluster.py`` is what a test gets; ``run.py`` ties it to pytest; ``site.py`` builds the cluster once for all processes of a run and
takes it down; ``guard.py`` does that for a run that was killed; ``evidence.py`` says what the cluster was like when a test failed;
``settings.py`` and ``process.py`` are what they say. Nothing here imports the rest of the program or the Kubernetes client before
a cluster is there: the plugin is loaded in every run of pytest.
"""

from provisioner.testing.cluster import Cluster

__all__ = ["Cluster"]
