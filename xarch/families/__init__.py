"""Typed contracts for kinds of models. A source fulfils one, a target says which ones it accepts."""
