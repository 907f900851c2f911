"""Everything that one run on a GPU should find out: ``python -m bench.gpu``.

Correctness first and the safest algorithm first, then times, each case in a process of its own that
ends after its limit; all results go into one JSON file, and ``python -m bench.gpu.fit`` reads it.
"""
