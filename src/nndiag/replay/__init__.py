"""Running the model on the probe and seeing what happens inside: forward, backward, and nothing left behind.

This room knows modules, torch functions and autograd. It hands on tensors (a layer's inputs, what its
units put out, the gradients that reach them). What a number means must not come in.
"""
