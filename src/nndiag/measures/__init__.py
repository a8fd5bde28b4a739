"""Numbers per node, layer and model, from tensors: the last room that knows torch.

Each level is a file; ``collect`` runs the passes and puts the record together. What a number means (dead,
degenerate, to be pruned) must not come in.
"""
