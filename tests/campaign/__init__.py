"""The fault campaign: real processes, faults at random moments, and an observer who trusts nobody.

    PYTHONPATH=.:tests python -m campaign [--runs N] [--minutes M] [--kinds a,b] [--seed S]

Read `docs/campaign.md` first. `life.py` is one station with its belt, disk and tower; `kinds*.py`
are the faults; `observer.py` judges from wires, log and belt alone; `ledger.py` adds up;
`broken.py` are stations that must be caught; `power.py` and `syscalls.py` cut power and kill at
every system call.
"""
