"""How nodes move along a run, and what that means: findings ND701 to ND708.

``reading``: from the JSON of scans to arrays. ``run``: those arrays. ``motion``, ``settling``, ``decline``,
``changes``: what is measured of them. ``rules``: findings; ``catalogue``: their documentation. ``judging``: the
record of it all. Torch does not come in: reports of a thousand checkpoints are compared in a moment.
"""
