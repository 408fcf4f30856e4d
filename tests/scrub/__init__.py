"""A data directory damaged in every way that a bad disk can, bit by bit and cut by cut, and what a reader, a start and
a scrub make of it.

store.py makes the directory, a real one, and what is known of it; damage.py draws a flip or a cut and says, from the
bytes alone, what lies there; look.py asks as a reader does and compares; case.py is one damage from beginning to end;
pool.py runs cases in processes that may die of them. By hand: python -m tests.scrub --bits 1000 --truncations 200
"""
