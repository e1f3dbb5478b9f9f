"""Interfaces that plugins implement and the engine relies on. Everything here is public API."""
