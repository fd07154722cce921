"""Crashes of real processes, at every system call, and of real file systems, at every write.

   acts.py     what a store does, each from a known state to a known end: install, update, confirm, rollback, scrub
   calls.py    each act in a process of its own, killed or refused at each of its system calls (strace)
   naive.py    a writer that has to fail, or a test of power cuts finds nothing
   disks.py    each act on ext4, xfs and btrfs over a disk that remembers (disk.py), replayed to many moments of it

``make crash`` runs all of it, as root, in a quarter of an hour; each part says why where it cannot run.
``test_crash.py`` runs a sample with the other tests. The model, which sees every operation lost or kept, is
``tests/fakes/weak_flash.py`` with the tests of power cuts beside the store's and the updater's.
"""
