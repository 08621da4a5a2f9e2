"""What mvirt-net costs, measured next to a peer in the same run: ``python -m bench``.

The figures of one machine say little, and less when others use it too, so nearly every one stands
beside that of something simple that does part of the same work: an empty loop in C, a trio task
that does nothing. Both take turns, and the ratio is what to trust. `bench.peers` puts the whole
daemon next to others of its kind. Nothing here is a test: no figure makes it fail.
`docs/explanation/performance.md` explains the figures.
"""
