"""``sandd ca``: the CA in a controller's state directory, whether the controller runs or not.

`options` (its command lines), `commands` (``show``, ``rotate``, ``issue``). A running controller notices what is
changed here within ten seconds.
"""
