"""Goal ``train``: changes to a network that trains on.

``following`` and ``outlets`` find who listens to a unit, ``initial`` draws weights, the other modules carry out one
treatment each.
"""
