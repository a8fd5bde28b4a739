"""What a run directory or the user's project says about a scan: tables, where they come from, and the code
they may name.

``tables``: what may be written. ``record``: a configuration that knows where each key stands. ``load``: from
files. ``callables``: specs that name code. ``trust``: whose code may run. Import the modules, not this
package; nothing here imports torch.
"""
