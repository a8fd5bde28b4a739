"""The gate: pass or fail from a report's JSON, a policy and a baseline.

``policies``: which policy counts. ``facts``: what a report says of a checkpoint. ``checking``: what is allowed.
``baseline``: what is tolerated. ``severity``: the shortcut of ``scan``. Neither torch, numpy nor pydantic comes in:
a build must not wait for them.
"""
