"""Emulated boards: a real ARM userland of Debian's packages, run by qemu on named cores."""
