"""The torture: a real engine under load while everything that may go wrong does, and an oracle outside of it.

schedule.py is the one table of faults and their weights; faults.py does them; writer.py is the process that ingests and
keeps what was acknowledged in a file that survives it; oracle.py reads that file and knows every event by its number;
checks.py asks the readers all the time; verify.py goes through the directory at the end. Which faults come in which
order depends on the seed alone; what they meet depends on the machine. By hand: python -m tests.torture --minutes 60
"""
