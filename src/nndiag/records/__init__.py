"""The records that travel between the stages, and nothing that computes.

``level``, ``settings``: what was asked. ``measured``: numbers per layer and node (numpy, no torch).
``report``: the document that ``--format json`` prints. ``document``, ``fitting``: its JSON read again, and
checked. Import the modules, not this package: commands that need none of pydantic and numpy must not pay for
them.
"""
