"""How nodes move along a run."""
