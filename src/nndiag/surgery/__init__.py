"""The hands of ``heal``: from a model and treatments to changed parameters, the proof of what they do, and a new
checkpoint.

``edits`` is the hand-over between those who change a network (``training``, ``deploying``) and those who write it
down (``writing``). What a treatment is for is decided before; nothing here judges.
"""
