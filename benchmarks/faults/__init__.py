"""Faults: what kills, signals, full disks, short memory, flipped bits and second processes do to a run."""
