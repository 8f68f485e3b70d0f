"""Trials that break a part of kitfs's surroundings many times, and check that no wrong byte is read and nothing hangs.

``python -m benchmarks.faults`` runs them. Each module of ``benchmarks.faults.trials`` is one trial, and the name of the
module is the name of the trial. Such a module has three things:

- a docstring whose first line says what the trial checks;
- ``COUNT``, the number of repetitions of a full trial;
- ``trial(count, seed)``, which returns ``Figures``.

Two runs of a trial with the same seed make the same random choices. A trial leaves nothing behind: no mount, no process
and no file.
"""
