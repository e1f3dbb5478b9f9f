"""Tiny decoders, random tokens and the template of a decoder plugin, for tests."""
