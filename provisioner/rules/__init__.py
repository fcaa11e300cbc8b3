"""What pydantic cannot see: rules over more than one key of cluster.yaml, one small function each, grouped by subject.

``rule.py`` says what a rule is, ``validate.py`` lists them all.
"""
