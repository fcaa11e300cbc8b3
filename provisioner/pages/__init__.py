"""The cluster on one page: `report`, `verify --html`.

- ``model``: everything that the page shows, as one frozen value, with its JSON;
- ``gather``: asks for all of it side by side; what does not answer is said in its place;
- ``versions``: what really runs on each machine (``versions_script``);
- ``shapes``, ``architecture``, ``pairs``, ``gantt``: pictures as values: where each rectangle, line and word goes;
- ``tables``: the lists beside them;
- ``render``: value and template (``templates/``) to one self-contained HTML file.
"""

from provisioner.pages.gather import gather
from provisioner.pages.model import Page
from provisioner.pages.render import render

__all__ = ["Page", "gather", "render"]
