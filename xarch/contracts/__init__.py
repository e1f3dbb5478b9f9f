"""What a plugin implements and what the engine relies on. Everything here is public API."""
