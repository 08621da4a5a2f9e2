"""The daemon side by side with what does the same work: one client for all of them.

`measure` runs everything by a `plan`; `backends` starts whom it is about, `client` the program that
sends and checks frames (``client.c`` with ``ports.c`` and ``frames.c``), and `subjects` has the two
take turns. `neighbours` is about a NIC beside others that flood, `notifications` about kicks and
calls. `tables` and `plot` make of it what people read.
"""
